//! Following a log that rises by sequence numbers, and a build by its log: a
//! broken stream is taken up again where it ended, a bounded number of times.

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use api::common::v1::{LogLine, LogSource};
use api::image::v1::{BuildState, BuildStep, FollowBuildLogRequest, ImageBuild, ListImageBuildsRequest};
use indicatif::{ProgressBar, ProgressStyle};

use super::Session;
use crate::durations;
use crate::error::{CliError, Kind};
use crate::output::{self, json};

/// Breaks of a stream in a row after which we give up.
const BREAKS_MAX: u32 = 20;
/// Pause after a break: a restarted service is back within seconds.
const BREAK_PAUSE: Duration = Duration::from_millis(500);
/// How long a new version may be without a build.
const BUILD_APPEARS_TIMEOUT: Duration = Duration::from_secs(15);
const BUILD_APPEARS_PAUSE: Duration = Duration::from_millis(100);
/// Log lines shown when a build fails.
const TAIL_LINES: usize = 25;
/// Steps of a build, fetch to publish.
const STEPS: u64 = 7;

/// How far a log was read.
#[derive(Debug, Default)]
pub struct Position {
    /// Sequence of the next line wanted.
    pub next: u64,
    breaks: u32,
}

impl Position {
    pub fn advance(&mut self, lines: &[LogLine]) {
        if let Some(last) = lines.last() {
            self.next = last.sequence + 1;
            self.breaks = 0;
        }
    }

    /// Waits before the stream is opened again, or gives the failure back when
    /// opening it again makes no sense.
    pub async fn pause_after(&mut self, failure: CliError) -> Result<(), CliError> {
        if !self.worth_another_try(failure.kind) {
            return Err(failure);
        }
        tokio::time::sleep(BREAK_PAUSE).await;
        Ok(())
    }

    fn worth_another_try(&mut self, kind: Kind) -> bool {
        self.breaks += 1;
        kind == Kind::Unavailable && self.breaks <= BREAKS_MAX
    }
}

/// Writes log lines to standard output.
pub fn print_lines(lines: &[LogLine], timestamps: bool, as_json: bool) -> Result<(), CliError> {
    for line in lines {
        if as_json {
            // One object a line, so that a reader can follow along.
            output::line(json::message("torpor.common.v1.LogLine", line))?;
        } else if timestamps {
            output::line(format_args!("{} {}", durations::rfc3339(line.time.as_ref()), shown(line)))?;
        } else {
            output::line(shown(line))?;
        }
    }
    Ok(())
}

fn shown(line: &LogLine) -> String {
    match line.source() {
        LogSource::Platform => format!("[torpor] {}", line.text),
        LogSource::Console => format!("[console] {}", line.text),
        _ => line.text.clone(),
    }
}

/// The newest build of a version, waiting for it to appear.
pub async fn newest_build(session: &Session, image: &str, version: &str) -> Result<ImageBuild, CliError> {
    let started = Instant::now();
    loop {
        let message = ListImageBuildsRequest {
            image_identifier: image.to_owned(),
            image_version: version.to_owned(),
            page_size: 1,
            page_token: String::new(),
        };
        let response = session.call(message).await?;
        if let Some(build) = response.builds.into_iter().next() {
            return Ok(build);
        }
        if started.elapsed() > BUILD_APPEARS_TIMEOUT {
            return Err(CliError::new(
                Kind::Timeout,
                format!("no builder took version {version} of {image}"),
            )
            .next("is image-builder healthy? see torpor status"));
        }
        tokio::time::sleep(BUILD_APPEARS_PAUSE).await;
    }
}

/// Prints a build's log; with `follow` until it ends.
pub async fn print_build_log(session: &Session, build_id: &str, follow: bool) -> Result<(), CliError> {
    let as_json = session.json();
    each_event(session, build_id, follow, |lines, _| print_lines(lines, false, as_json)).await.map(|_| ())
}

/// Follows a build to its end with a progress display on standard error. A
/// failed build is a failure that carries its reason; its last log lines are shown.
pub async fn build(session: &Session, build_id: &str, verbose: bool) -> Result<ImageBuild, CliError> {
    let display = Display::new();
    let mut tail: VecDeque<String> = VecDeque::with_capacity(TAIL_LINES);
    let result = each_event(session, build_id, true, |lines, build| {
        for line in lines {
            if verbose {
                display.line(&shown(line));
            } else {
                display.note(&line.text);
            }
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(shown(line));
        }
        if let Some(build) = build {
            display.step(build);
        }
        Ok(())
    })
    .await;
    display.finish();
    let build = result?;
    if build.state() == BuildState::Failed {
        if !verbose {
            tail.iter().for_each(output::remark);
        }
        let step = step_name(build.step());
        let code =
            if build.reason_code.is_empty() { String::new() } else { format!(" ({})", build.reason_code) };
        return Err(CliError::failed(format!(
            "the build failed at step {step}: {}{code}",
            build.state_reason
        ))
        .next(format!("read the whole log: torpor image logs {}", build.image_name)));
    }
    Ok(build)
}

/// Reads a build's log stream, taking it up again when it breaks; returns the build as last seen.
async fn each_event(
    session: &Session,
    build_id: &str,
    follow: bool,
    mut event: impl FnMut(&[LogLine], Option<&ImageBuild>) -> Result<(), CliError>,
) -> Result<ImageBuild, CliError> {
    let mut position = Position::default();
    let mut last = ImageBuild::default();
    loop {
        let message =
            FollowBuildLogRequest { build_id: build_id.to_owned(), from_sequence: position.next, follow };
        let result = async {
            let mut client = session.context.settled().await?.images()?;
            let mut stream = client.follow_build_log(message).await?.into_inner();
            while let Some(response) = stream.message().await? {
                position.advance(&response.lines);
                event(&response.lines, response.build.as_ref())?;
                if let Some(build) = response.build {
                    last = build;
                }
            }
            Ok::<_, CliError>(())
        }
        .await;
        let ended = matches!(last.state(), BuildState::Successful | BuildState::Failed);
        match result {
            Ok(()) if ended || !follow => return Ok(last),
            // A builder that stops ends its streams in good order.
            Ok(()) => position.pause_after(CliError::new(Kind::Unavailable, "the builder went away")).await?,
            Err(failure) if follow => position.pause_after(failure).await?,
            Err(failure) => return Err(failure),
        }
    }
}

pub fn step_name(step: BuildStep) -> &'static str {
    match step {
        BuildStep::Unspecified => "waiting for a builder",
        BuildStep::Fetch => "fetch",
        BuildStep::Unpack => "unpack",
        BuildStep::Container => "container",
        BuildStep::Disk => "disk",
        BuildStep::Bake => "bake",
        BuildStep::Validate => "validate",
        BuildStep::Publish => "publish",
    }
}

/// A bar on a terminal, one line per step elsewhere.
struct Display {
    bar: Option<ProgressBar>,
    shown: std::cell::Cell<BuildStep>,
    started: Instant,
}

impl Display {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(STEPS);
            let style = ProgressStyle::with_template(
                "{spinner} [{elapsed}] {bar:14} {pos}/{len} {prefix} {wide_msg}",
            )
            .expect("the template is a constant and valid");
            bar.set_style(style);
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, shown: std::cell::Cell::new(BuildStep::Unspecified), started: Instant::now() }
    }

    fn step(&self, build: &ImageBuild) {
        let step = build.step();
        if step == self.shown.replace(step) || build.state() == BuildState::Failed {
            return;
        }
        let number = u64::try_from(i32::from(step)).unwrap_or(0);
        match &self.bar {
            Some(bar) => {
                bar.set_position(number.saturating_sub(1));
                bar.set_prefix(step_name(step));
                bar.set_message("");
            }
            None => output::remark(format_args!(
                "[{:>5.1} s] step {number}/{STEPS}: {}",
                self.started.elapsed().as_secs_f64(),
                step_name(step)
            )),
        }
    }

    fn note(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.chars().filter(|c| !c.is_control()).take(200).collect::<String>());
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::remark(text)),
            None => output::remark(text),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_taken_up_again_a_bounded_number_of_times() {
        let mut position = Position::default();
        for _ in 0..BREAKS_MAX {
            assert!(position.worth_another_try(Kind::Unavailable));
        }
        assert!(!position.worth_another_try(Kind::Unavailable));
        position.advance(&[LogLine { sequence: 41, ..LogLine::default() }]);
        assert_eq!(position.next, 42);
        assert!(position.worth_another_try(Kind::Unavailable), "progress starts the count again");
        assert!(!position.worth_another_try(Kind::NotFound), "pointless to repeat");
    }
}
