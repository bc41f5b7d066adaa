//! `torpor hosts drain`: how far it has come, and waiting for its end.

use std::collections::HashSet;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use api::host::v1::{DrainHostRequest, DrainProgress, Host, HostState};
use indicatif::{ProgressBar, ProgressStyle};

use super::Session;
use crate::error::{CliError, Kind};
use crate::output;

/// How often it is asked how far the drain has come.
const PAUSE: Duration = Duration::from_millis(500);
/// Most microVMs that an error names.
const NAMED_MAX: usize = 10;

/// Begins the drain, or goes on with it.
pub async fn ask(session: &Session, host_id: &str) -> Result<Host, CliError> {
    let message = DrainHostRequest { host_id: host_id.to_owned(), wake_elsewhere: true };
    Ok(session.call_slowly(message).await?.host.unwrap_or_default())
}

/// Returns when nothing runs on the host any more, S3 has what sleeps, and what ran goes on elsewhere.
pub async fn wait(session: &Session, host_id: &str, timeout: Duration) -> Result<Host, CliError> {
    let started = Instant::now();
    let mut shown = Shown::begin(session.json());
    loop {
        let host = ask(session, host_id).await?;
        let progress = host.drain.clone().unwrap_or_default();
        shown.show(host_id, &progress);
        match verdict(&host, &progress) {
            Verdict::GoOn => {}
            Verdict::Done => {
                shown.finish();
                return Ok(host);
            }
            Verdict::NoRoom => {
                shown.finish();
                let ran = progress.to_wake;
                let text = format!(
                    "{host_id} can go, and {ran} of the microVMs that ran there sleep on S3, where nothing is lost: {}",
                    named(&progress)
                );
                return Err(CliError::failed(text)
                    .next("they go on as soon as a host has room: add one, or torpor hosts undrain"));
            }
        }
        if started.elapsed() > timeout {
            shown.finish();
            let text = format!("{host_id}: {}: {}", sentence(&progress), named(&progress));
            return Err(CliError::new(Kind::Timeout, text)
                .next(format!("the drain goes on; look again: torpor hosts drain {host_id} --wait")));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    GoOn,
    Done,
    /// Nothing is left to do but what no host has room for.
    NoRoom,
}

fn verdict(host: &Host, progress: &DrainProgress) -> Verdict {
    // A lost host has no progress to tell of; what it held is dealt with as lost.
    if host.state() == HostState::Lost || progress.running + progress.only_here > 0 {
        return Verdict::GoOn;
    }
    let refused = progress.left.iter().all(|left| left.refused);
    match progress.to_wake {
        0 => Verdict::Done,
        _ if refused => Verdict::NoRoom,
        _ => Verdict::GoOn,
    }
}

/// How far a drain has come, for people.
pub fn sentence(progress: &DrainProgress) -> String {
    let counts = [
        (progress.running, "running"),
        (progress.only_here, "asleep and not on S3 yet"),
        (progress.to_wake, "asleep that ran, to go on elsewhere"),
    ];
    let counts: Vec<String> =
        counts.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    match counts.is_empty() {
        true => "the host can go".to_owned(),
        false => format!("{} to move", counts.join(", ")),
    }
}

/// Those that have not moved, with why.
fn named(progress: &DrainProgress) -> String {
    let named = progress.left.iter().take(NAMED_MAX);
    let mut all: Vec<String> = named.map(|left| format!("{} ({})", left.microvm_id, left.reason)).collect();
    let total = progress.running + progress.only_here + progress.to_wake;
    let more = usize::try_from(total).unwrap_or(usize::MAX).saturating_sub(all.len());
    if more > 0 {
        all.push(format!("and {more} more"));
    }
    all.join(", ")
}

/// A bar on a terminal, lines otherwise, nothing beside JSON.
struct Shown {
    bar: Option<ProgressBar>,
    json: bool,
    /// Most that there were to move.
    total: u64,
    last: String,
    told: HashSet<String>,
}

impl Shown {
    fn begin(json: bool) -> Self {
        let bar = (!json && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} moved  {msg}");
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, json, total: 0, last: String::new(), told: HashSet::new() }
    }

    fn show(&mut self, host_id: &str, progress: &DrainProgress) {
        let left = u64::from(progress.running) + u64::from(progress.only_here) + u64::from(progress.to_wake);
        self.total = self.total.max(left);
        let sentence = sentence(progress);
        if let Some(bar) = &self.bar {
            bar.set_length(self.total);
            bar.set_position(self.total - left);
            bar.set_message(sentence);
        } else if !self.json && self.last != sentence {
            output::remark(format_args!("{host_id}: {sentence}"));
            self.last = sentence;
        }
        for left in progress.left.iter().filter(|left| left.refused) {
            let line = format!("{} stays for now: {}", left.microvm_id, left.reason);
            if !self.json && self.told.insert(line.clone()) {
                match &self.bar {
                    Some(bar) => bar.println(line),
                    None => output::remark(line),
                }
            }
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
    use api::host::v1::DrainLeft;

    use super::*;

    #[test]
    fn a_drain_is_done_when_the_host_can_go_and_what_ran_goes_on() {
        let left = |refused| DrainLeft { refused, ..DrainLeft::default() };
        for (running, only_here, to_wake, refused, expected, words) in [
            (0, 0, 0, vec![], Verdict::Done, "the host can go"),
            (2, 1, 0, vec![], Verdict::GoOn, "2 running, 1 asleep and not on S3 yet to move"),
            (0, 0, 1, vec![false], Verdict::GoOn, "1 asleep that ran, to go on elsewhere to move"),
            (0, 0, 2, vec![true, true], Verdict::NoRoom, "2 asleep that ran, to go on elsewhere to move"),
            (0, 0, 2, vec![true, false], Verdict::GoOn, "2 asleep that ran, to go on elsewhere to move"),
            (
                1,
                0,
                1,
                vec![true, true],
                Verdict::GoOn,
                "1 running, 1 asleep that ran, to go on elsewhere to move",
            ),
        ] {
            let left = refused.into_iter().map(left).collect();
            let progress = DrainProgress { running, only_here, to_wake, left };
            assert_eq!(verdict(&Host::default(), &progress), expected, "{progress:?}");
            assert_eq!(sentence(&progress), words);
        }
    }
}
