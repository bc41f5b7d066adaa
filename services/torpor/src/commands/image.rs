//! `torpor image`.

use std::time::{Duration, Instant};

use api::image::v1::{
    CodeArtifact, CreateImageRequest, DeleteImageRequest, DeleteImageVersionRequest, GetImageRequest,
    GetImageVersionRequest, Image as ImageMessage, ImageConfiguration, ImageState, ImageVersion,
    ListImageBuildsRequest, ListImageVersionsRequest, ListImagesRequest, UpdateImageRequest,
};
use tonic::Code;

use super::Session;
use super::calls::{QUICK, call, client_token, pair, request};
use super::{follow, image_views as views};
use crate::artifact;
use crate::cli::image::{Build, Hooks, Image};
use crate::durations;
use crate::error::{CliError, Kind};
use crate::output::{self, json};

/// Longest wait for a deletion: snapshots leave S3 object by object.
const DELETE_TIMEOUT: Duration = Duration::from_secs(120);
const DELETE_PAUSE: Duration = Duration::from_millis(200);

/// Runs the command.
pub async fn run(session: &Session, command: Image) -> Result<(), CliError> {
    match command {
        Image::Create(arguments) => build(session, arguments, false).await,
        Image::Update(arguments) => build(session, arguments, true).await,
        Image::List { filter } => list(session, filter).await,
        Image::Get { image } => get(session, image).await,
        Image::Versions { image } => versions(session, image).await,
        Image::Builds { image, version } => builds(session, image, version).await,
        Image::Logs { image, version, follow } => {
            let build = follow::newest_build(session, &image, version.as_deref().unwrap_or_default()).await?;
            follow::print_build_log(session, &build.build_id, follow).await
        }
        Image::Delete { image, version: None, no_wait } => delete(session, image, no_wait).await,
        Image::Delete { image, version: Some(version), .. } => delete_version(session, image, version).await,
    }
}

async fn build(session: &Session, arguments: Build, update: bool) -> Result<(), CliError> {
    let started = Instant::now();
    let mut configuration = configuration(&arguments)?;
    let tags = pairs(&arguments.tags, "--tag")?;
    let uri = artifact::place(session, &arguments.name, &arguments.artifact).await?;
    configuration.code_artifact = Some(CodeArtifact { uri });
    let client = session.context.images()?;
    let token = client_token(arguments.client_token);
    let (image, version) = if update {
        let message = UpdateImageRequest {
            image_identifier: arguments.name.clone(),
            configuration: Some(configuration),
            client_token: token,
        };
        let response = call(|| {
            let (mut client, message) = (client.clone(), message.clone());
            async move { client.update_image(request(message, QUICK)).await }
        })
        .await?;
        (response.image, response.version)
    } else {
        let message = CreateImageRequest {
            name: arguments.name.clone(),
            configuration: Some(configuration),
            tags,
            client_token: token,
        };
        let response = call(|| {
            let (mut client, message) = (client.clone(), message.clone());
            async move { client.create_image(request(message, QUICK)).await }
        })
        .await?;
        (response.image, response.version)
    };
    let (image, version) = (image.unwrap_or_default(), version.unwrap_or_default());
    if arguments.no_follow {
        return created(session, &image, &version);
    }
    finish_build(session, &image, &version, arguments.verbose, started).await
}

fn created(session: &Session, image: &ImageMessage, version: &ImageVersion) -> Result<(), CliError> {
    if session.json() {
        return output::value(&serde_json::json!({
            "image": json::message(views::IMAGE, image),
            "version": json::message(views::VERSION, version),
        }));
    }
    views::image(image)?;
    output::remark(format_args!("next: torpor image logs -f {}", image.name));
    Ok(())
}

async fn finish_build(
    session: &Session,
    image: &ImageMessage,
    version: &ImageVersion,
    verbose: bool,
    started: Instant,
) -> Result<(), CliError> {
    let build = follow::newest_build(session, &image.name, &version.image_version).await?;
    let build = tokio::select! {
        result = follow::build(session, &build.build_id, verbose) => result?,
        _ = tokio::signal::ctrl_c() => {
            return Err(CliError::failed("stopped following; the build goes on")
                .next(format!("torpor image logs -f {}", image.name)));
        }
    };
    let image = fetch(session, &image.name).await?;
    let version = fetch_version(session, &image.name, &build.image_version).await?;
    if session.json() {
        return output::value(&serde_json::json!({
            "image": json::message(views::IMAGE, &image),
            "version": json::message(views::VERSION, &version),
            "build": json::message(views::BUILD, &build),
        }));
    }
    views::finished_build(&image, &build, started.elapsed())
}

fn configuration(arguments: &Build) -> Result<ImageConfiguration, CliError> {
    let mut environment = match &arguments.env_file {
        Some(path) => environment_file(path)?,
        None => Vec::new(),
    };
    for text in &arguments.environment {
        environment.push(pair(text, "--env")?);
    }
    Ok(ImageConfiguration {
        base_image_arn: arguments.base.clone(),
        description: arguments.description.clone().unwrap_or_default(),
        resources: arguments
            .memory
            .map(|minimum_memory_mib| api::common::v1::Resources { minimum_memory_mib }),
        additional_os_capabilities: if arguments.all_capabilities {
            vec!["ALL".to_owned()]
        } else {
            Vec::new()
        },
        environment_variables: environment.into_iter().collect(),
        hooks: hooks(&arguments.hooks)?,
        ..ImageConfiguration::default()
    })
}

fn pairs<C: FromIterator<(String, String)>>(texts: &[String], option: &str) -> Result<C, CliError> {
    texts.iter().map(|text| pair(text, option)).collect()
}

fn environment_file(path: &std::path::Path) -> Result<Vec<(String, String)>, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::new(Kind::Usage, format!("cannot read {}: {error}", path.display())))?;
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| pair(line, "--env-file"))
        .collect()
}

fn hooks(arguments: &Hooks) -> Result<Option<api::common::v1::Hooks>, CliError> {
    let hook = |value: &Option<String>, name: &str| match value.as_deref() {
        None => Ok(None),
        Some(timeout) => {
            let timeout = match timeout {
                "" => None,
                text => Some(api::duration_proto(durations::parse(text).map_err(|error| {
                    CliError::new(Kind::Usage, format!("--{name}-hook={text}: {error}"))
                })?)),
            };
            let mode = api::common::v1::HookMode::Enabled.into();
            Ok::<_, CliError>(Some(api::common::v1::Hook { mode, timeout }))
        }
    };
    let hooks = api::common::v1::Hooks {
        port: arguments.hook_port.unwrap_or_default().into(),
        ready: hook(&arguments.ready_hook, "ready")?,
        validate: hook(&arguments.validate_hook, "validate")?,
        run: hook(&arguments.run_hook, "run")?,
        resume: hook(&arguments.resume_hook, "resume")?,
        suspend: hook(&arguments.suspend_hook, "suspend")?,
        terminate: hook(&arguments.terminate_hook, "terminate")?,
    };
    Ok((hooks != api::common::v1::Hooks::default()).then_some(hooks))
}

async fn list(session: &Session, filter: Option<String>) -> Result<(), CliError> {
    let client = session.context.images()?;
    let mut images = Vec::new();
    let mut page_token = String::new();
    loop {
        let name_filter = filter.clone().unwrap_or_default();
        let message = ListImagesRequest { page_size: 0, page_token, name_filter };
        let page = call(|| {
            let (mut client, message) = (client.clone(), message.clone());
            async move { client.list_images(request(message, QUICK)).await }
        })
        .await?;
        images.extend(page.images);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if session.json() {
        return output::value(&json::messages(views::IMAGE, &images));
    }
    views::images(&images)
}

async fn fetch(session: &Session, image: &str) -> Result<ImageMessage, CliError> {
    let client = session.context.images()?;
    let response = call(|| {
        let mut client = client.clone();
        let message = GetImageRequest { image_identifier: image.to_owned() };
        async move { client.get_image(request(message, QUICK)).await }
    })
    .await?;
    Ok(response.image.unwrap_or_default())
}

async fn fetch_version(session: &Session, image: &str, version: &str) -> Result<ImageVersion, CliError> {
    let client = session.context.images()?;
    let response = call(|| {
        let mut client = client.clone();
        let message =
            GetImageVersionRequest { image_identifier: image.to_owned(), image_version: version.to_owned() };
        async move { client.get_image_version(request(message, QUICK)).await }
    })
    .await?;
    Ok(response.version.unwrap_or_default())
}

async fn get(session: &Session, image: String) -> Result<(), CliError> {
    let image = fetch(session, &image).await?;
    if session.json() {
        return output::value(&json::message(views::IMAGE, &image));
    }
    views::image(&image)
}

async fn versions(session: &Session, image: String) -> Result<(), CliError> {
    let client = session.context.images()?;
    let mut versions = Vec::new();
    let mut page_token = String::new();
    loop {
        let message = ListImageVersionsRequest { image_identifier: image.clone(), page_size: 0, page_token };
        let page = call(|| {
            let (mut client, message) = (client.clone(), message.clone());
            async move { client.list_image_versions(request(message, QUICK)).await }
        })
        .await?;
        versions.extend(page.versions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if session.json() {
        return output::value(&json::messages(views::VERSION, &versions));
    }
    views::versions(&versions)
}

async fn builds(session: &Session, image: String, version: Option<String>) -> Result<(), CliError> {
    let client = session.context.images()?;
    let message = ListImageBuildsRequest {
        image_identifier: image,
        image_version: version.unwrap_or_default(),
        page_size: 0,
        page_token: String::new(),
    };
    let response = call(|| {
        let (mut client, message) = (client.clone(), message.clone());
        async move { client.list_image_builds(request(message, QUICK)).await }
    })
    .await?;
    if session.json() {
        return output::value(&json::messages(views::BUILD, &response.builds));
    }
    views::builds(&response.builds)
}

async fn delete_version(session: &Session, image: String, version: String) -> Result<(), CliError> {
    let client = session.context.images()?;
    let message = DeleteImageVersionRequest { image_identifier: image, image_version: version };
    let response = call(|| {
        let (mut client, message) = (client.clone(), message.clone());
        async move { client.delete_image_version(request(message, QUICK)).await }
    })
    .await?;
    let version = response.version.unwrap_or_default();
    if session.json() {
        return output::value(&json::message(views::VERSION, &version));
    }
    views::versions(&[version])
}

async fn delete(session: &Session, image: String, no_wait: bool) -> Result<(), CliError> {
    let client = session.context.images()?;
    let response = call(|| {
        let mut client = client.clone();
        let message = DeleteImageRequest { image_identifier: image.clone() };
        async move { client.delete_image(request(message, QUICK)).await }
    })
    .await?;
    let mut last = response.image.unwrap_or_default();
    let started = Instant::now();
    while !no_wait && last.state() != ImageState::Deleted {
        if last.state() == ImageState::DeleteFailed {
            return Err(CliError::failed(format!("image {image} could not be deleted"))
                .next(format!("delete it again: torpor image delete {image}")));
        }
        if started.elapsed() > DELETE_TIMEOUT {
            return Err(CliError::new(Kind::Timeout, format!("image {image} is still being deleted"))
                .next(format!("look again later: torpor image get {image}")));
        }
        tokio::time::sleep(DELETE_PAUSE).await;
        let message = GetImageRequest { image_identifier: image.clone() };
        match client.clone().get_image(request(message, QUICK)).await {
            Ok(response) => last = response.into_inner().image.unwrap_or_default(),
            Err(status) if status.code() == Code::NotFound => last.set_state(ImageState::Deleted),
            Err(status) if status.code() == Code::Unavailable => {}
            Err(status) => return Err(status.into()),
        }
    }
    if session.json() {
        return output::value(&json::message(views::IMAGE, &last));
    }
    output::line(format_args!("{image} {}", json::short_name(last.state().as_str_name(), "ImageState")))
}
