//! `torpor image`.

use std::time::{Duration, Instant};

use api::image::v1::{
    CodeArtifact, CreateImageRequest, DeleteImageRequest, DeleteImageVersionRequest, GetImageRequest,
    GetImageVersionRequest, Image as ImageMessage, ImageConfiguration, ImageState, ImageVersion,
    ListImageBuildsRequest, ListImageVersionsRequest, ListImagesRequest, UpdateImageRequest,
};

use super::Session;
use super::calls::{client_token, pair};
use super::{follow, image_views as views};
use crate::artifact;
use crate::cli::image::{Build, Hooks, Image};
use crate::durations;
use crate::error::{CliError, Kind};
use crate::flags;
use crate::output::{self, json};

/// Longest wait for a deletion: snapshots leave S3 object by object.
const DELETE_TIMEOUT: Duration = Duration::from_secs(120);
/// Names that are offered in place of one that does not exist.
const SIMILAR_MAX: usize = 3;
/// A name of fewer letters has one slip of the pen at most.
const LETTERS_PER_SLIP: usize = 6;
const DELETE_PAUSE: Duration = Duration::from_millis(200);

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
    let token = client_token(arguments.client_token);
    let answered = if update {
        let message = UpdateImageRequest {
            image_identifier: arguments.name.clone(),
            configuration: Some(configuration),
            client_token: token,
        };
        session.call(message).await.map(|answer| (answer.image, answer.version))
    } else {
        let message = CreateImageRequest {
            name: arguments.name.clone(),
            configuration: Some(configuration),
            tags,
            client_token: token,
        };
        session.call(message).await.map(|answer| (answer.image, answer.version))
    };
    let (image, version) = answered.map_err(|error| error.in_flags(flags::IMAGE))?;
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
    views::image(image, None)?;
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
        end_connections_at_suspend: arguments.end_connections_at_suspend,
        ..ImageConfiguration::default()
    })
}

fn pairs<C: FromIterator<(String, String)>>(texts: &[String], option: &str) -> Result<C, CliError> {
    texts.iter().map(|text| pair(text, option)).collect()
}

fn environment_file(path: &std::path::Path) -> Result<Vec<(String, String)>, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::usage(format!("cannot read {}: {error}", path.display())))?;
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
                text => Some(api::duration_proto(
                    durations::parse(text)
                        .map_err(|error| CliError::usage(format!("--{name}-hook={text}: {error}")))?,
                )),
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
    let images = all(session, filter.as_deref().unwrap_or_default()).await?;
    session.show_all(views::IMAGE, &images, views::images)
}

/// Every image whose name contains a text.
pub async fn all(session: &Session, name_filter: &str) -> Result<Vec<ImageMessage>, CliError> {
    let ask =
        |page_token| ListImagesRequest { page_size: 0, page_token, name_filter: name_filter.to_owned() };
    session.all(ask, |page| (page.images, page.next_page_token)).await
}

/// What to say in place of an error about an image: that there is none of its name, when that is so.
pub async fn explained(session: &Session, image: &str, error: CliError) -> CliError {
    match fetch(session, image).await {
        Err(missing) if missing.kind == Kind::NotFound => {}
        Ok(_) | Err(_) => return error,
    }
    // Without the names of others the advice is shorter.
    let images = all(session, "").await.unwrap_or_default();
    unknown(image, images.into_iter().map(|other| other.name))
}

fn unknown(image: &str, known: impl Iterator<Item = String>) -> CliError {
    let similar: Vec<String> = known.filter(|name| resembles(name, image)).take(SIMILAR_MAX).collect();
    let next = match similar.as_slice() {
        [] => "see which there are: torpor image list".to_owned(),
        names => format!("did you mean {}? see torpor image list", names.join(" or ")),
    };
    CliError::new(Kind::NotFound, format!("there is no image named {image}")).next(next)
}

/// True for names that a person may have mistaken for each other.
fn resembles(one: &str, other: &str) -> bool {
    let (one, other) = (one.to_lowercase(), other.to_lowercase());
    one.starts_with(&other)
        || other.starts_with(&one)
        || strsim::osa_distance(&one, &other) <= 1 + one.len().min(other.len()) / LETTERS_PER_SLIP
}

async fn fetch(session: &Session, image: &str) -> Result<ImageMessage, CliError> {
    let response = session.call(GetImageRequest { image_identifier: image.to_owned() }).await?;
    Ok(response.image.unwrap_or_default())
}

async fn fetch_version(session: &Session, image: &str, version: &str) -> Result<ImageVersion, CliError> {
    let response = session
        .call(GetImageVersionRequest {
            image_identifier: image.to_owned(),
            image_version: version.to_owned(),
        })
        .await?;
    Ok(response.version.unwrap_or_default())
}

async fn get(session: &Session, image: String) -> Result<(), CliError> {
    let image = fetch(session, &image).await?;
    let active = match image.latest_active_image_version.as_str() {
        "" => None,
        active => Some(fetch_version(session, &image.name, active).await?),
    };
    if session.json() {
        let mut object = json::message(views::IMAGE, &image);
        let active = active.unwrap_or_default();
        let ends = active.configuration.is_some_and(|chosen| chosen.end_connections_at_suspend);
        object["warnings"] = active.warnings.into();
        object["endConnectionsAtSuspend"] = ends.into();
        return output::value(&object);
    }
    views::image(&image, active.as_ref())
}

async fn versions(session: &Session, image: String) -> Result<(), CliError> {
    let ask =
        |page_token| ListImageVersionsRequest { image_identifier: image.clone(), page_size: 0, page_token };
    let versions = session.all(ask, |page| (page.versions, page.next_page_token)).await?;
    session.show_all(views::VERSION, &versions, views::versions)
}

async fn builds(session: &Session, image: String, version: Option<String>) -> Result<(), CliError> {
    let message = ListImageBuildsRequest {
        image_identifier: image,
        image_version: version.unwrap_or_default(),
        page_size: 0,
        page_token: String::new(),
    };
    let response = session.call(message).await?;
    session.show_all(views::BUILD, &response.builds, views::builds)
}

async fn delete_version(session: &Session, image: String, version: String) -> Result<(), CliError> {
    let message = DeleteImageVersionRequest { image_identifier: image, image_version: version };
    let response = session.call(message).await?;
    let version = response.version.unwrap_or_default();
    session.show(views::VERSION, &version, |version| views::versions(std::slice::from_ref(version)))
}

async fn delete(session: &Session, image: String, no_wait: bool) -> Result<(), CliError> {
    let response = session.call(DeleteImageRequest { image_identifier: image.clone() }).await?;
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
        match fetch(session, &image).await {
            Ok(image) => last = image,
            Err(error) if error.kind == Kind::NotFound => last.set_state(ImageState::Deleted),
            Err(error) if error.kind == Kind::Unavailable => {}
            Err(error) => return Err(error),
        }
    }
    session.show(views::IMAGE, &last, |last| {
        output::line(format_args!("{image} {}", json::short_name(last.state().as_str_name(), "ImageState")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_image_is_said_to_be_one() {
        let names = || ["web", "database", "web-2"].into_iter().map(str::to_owned);
        for (typed, next) in [
            ("wbe", "did you mean web"),
            ("web-3", "did you mean web or web-2? see torpor image list"),
            ("nosuch", "see which there are: torpor image list"),
        ] {
            let error = unknown(typed, names());
            assert_eq!(
                (error.kind, error.message),
                (Kind::NotFound, format!("there is no image named {typed}"))
            );
            assert!(error.next.as_deref().is_some_and(|said| said.contains(next)), "{:?}", error.next);
        }
    }

    #[test]
    fn slips_resemble_what_was_meant() {
        for (typed, meant) in
            [("wbe", "web"), ("Web", "web"), ("web", "web-2"), ("walktrough", "walkthrough")]
        {
            assert!(resembles(meant, typed), "{typed} {meant}");
        }
        for (typed, other) in [("web", "database"), ("api", "web")] {
            assert!(!resembles(other, typed), "{typed} {other}");
        }
    }
}
