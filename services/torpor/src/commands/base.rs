//! `torpor base`: the local base images a FROM line can name.

use std::time::{Duration, Instant};

use api::image::v1::{BaseImage, BuildBaseImageRequest, ListBaseImagesRequest};
use indicatif::ProgressBar;
use tonic::Request;

use super::Session;
use crate::cli::image::Base;
use crate::durations;
use crate::error::CliError;
use crate::output::{self, json};

/// Longest wait for a base: a mirror may be slow.
const BUILD_TIMEOUT: Duration = Duration::from_secs(20 * 60);
/// Log lines shown when a build fails.
const TAIL_LINES: usize = 20;
const TYPE: &str = "torpor.image.v1.BaseImage";

pub async fn run(session: &Session, command: Base) -> Result<(), CliError> {
    match command {
        Base::List => list(session).await,
        Base::Build { name, rebuild, verbose } => build(session, name, rebuild, verbose).await,
    }
}

async fn list(session: &Session) -> Result<(), CliError> {
    let ask = |page_token| ListBaseImagesRequest { page_size: 0, page_token };
    let bases = session.all(ask, |page| (page.base_images, page.next_page_token)).await?;
    session.show_all(TYPE, &bases, show)
}

fn show(bases: &[BaseImage]) -> Result<(), CliError> {
    let row = |base: &BaseImage| {
        [
            base.name.clone(),
            base.version.clone(),
            output::bytes(base.size_bytes),
            durations::rfc3339(base.create_time.as_ref()),
        ]
    };
    let empty = "no base images; make one: torpor base build debian-12";
    output::table(["name", "version", "size", "created"], bases, row, empty)
}

async fn build(session: &Session, name: String, rebuild: bool, verbose: bool) -> Result<(), CliError> {
    let mut client = session.context.settled().await?.images()?;
    let started = Instant::now();
    let bar = ProgressBar::new_spinner().with_message(format!("building base image {name}"));
    bar.enable_steady_tick(Duration::from_millis(120));
    let mut message = Request::new(BuildBaseImageRequest { name: name.clone(), rebuild });
    message.set_timeout(BUILD_TIMEOUT);
    let mut tail = std::collections::VecDeque::with_capacity(TAIL_LINES);
    let mut base = None;
    let result = async {
        let mut stream = client.build_base_image(message).await?.into_inner();
        while let Some(response) = stream.message().await? {
            for line in response.lines {
                if verbose {
                    bar.suspend(|| output::remark(&line.text));
                } else {
                    bar.set_message(format!("building base image {name}: {}", shortened(&line.text)));
                }
                if tail.len() == TAIL_LINES {
                    tail.pop_front();
                }
                tail.push_back(line.text);
            }
            base = response.base_image.or(base.take());
        }
        Ok::<_, CliError>(())
    }
    .await;
    bar.finish_and_clear();
    if let Err(failure) = result {
        if !verbose {
            tail.iter().for_each(output::remark);
        }
        return Err(failure.during(format_args!("cannot build base image {name}")));
    }
    let base = base.ok_or_else(|| CliError::failed("image-builder ended the build without a result"))?;
    if session.json() {
        return output::value(&json::message(TYPE, &base));
    }
    show(std::slice::from_ref(&base))?;
    output::remark(format_args!("done in {}", durations::short(started.elapsed())));
    Ok(())
}

fn shortened(text: &str) -> String {
    const WIDTH: usize = 60;
    text.chars().filter(|c| !c.is_control()).take(WIDTH).collect()
}
