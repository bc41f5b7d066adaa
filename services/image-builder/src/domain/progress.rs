//! What BuildKit says of a build, line by line (`--progress=plain`), and what of it goes into the build's log.
//!
//! ```text
//! #5 [build 2/3] RUN make          a step begins, or is spoken of again
//! #5 0.082 cc -o app app.c         a line of its output, and when
//! #5 DONE 1.3s | CACHED | ERROR: process "/bin/sh -c make" did not complete successfully: exit code: 2
//! ------                           the end of a build that failed: its last output once more, then
//! Dockerfile:4                     where, and the lines there
//! ERROR: failed to solve: ...      why
//! ```

use std::collections::HashMap;

/// One line, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This step is spoken of from here on.
    Step(String),
    Output(String),
    Done {
        step: String,
        seconds: String,
    },
    Cached(String),
    Failed {
        step: String,
        why: String,
    },
    /// The number of the Dockerfile's line that failed.
    Line(usize),
    /// Why all of it failed.
    Error(String),
    /// Of no interest to anybody.
    Nothing,
}

/// Follows the lines of one build.
#[derive(Debug, Default)]
pub struct Progress {
    steps: HashMap<u32, String>,
    ending: Ending,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Ending {
    #[default]
    No,
    /// What was said already is said again.
    Again,
    /// The Dockerfile's lines are shown.
    Lines,
}

/// What steps are called that the Dockerfile does not have.
const INTERNAL: [&str; 5] =
    ["[internal] ", "building with ", "exporting to image", "resolve image config", "[auth] "];

impl Progress {
    pub fn read(&mut self, line: &str) -> Event {
        let about = line.strip_prefix('#').and_then(|rest| rest.split_once(' '));
        let Some((number, rest)) = about.and_then(|(number, rest)| Some((number.parse::<u32>().ok()?, rest)))
        else {
            return self.read_ending(line);
        };
        self.ending = Ending::No;
        let Some(step) = self.steps.get(&number).cloned() else {
            self.steps.insert(number, rest.to_owned());
            return shown(rest, Event::Step(rest.to_owned()));
        };
        if rest == step {
            return shown(&step, Event::Step(step.clone()));
        }
        if let Some(why) = rest.strip_prefix("ERROR: ") {
            return Event::Failed { step, why: why.to_owned() };
        }
        if rest == "CACHED" {
            return shown(&step, Event::Cached(step.clone()));
        }
        if let Some(seconds) = rest.strip_prefix("DONE ") {
            let seconds = seconds.trim_end_matches('s').to_owned();
            return shown(&step, Event::Done { step: step.clone(), seconds });
        }
        let (time, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let is_time = time.split_once('.').is_some_and(|(whole, part)| {
            !part.is_empty()
                && [whole, part].iter().all(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        });
        if is_time { shown(&step, Event::Output(text.to_owned())) } else { Event::Nothing }
    }

    fn read_ending(&mut self, line: &str) -> Event {
        if let Some(why) = line.strip_prefix("ERROR: ") {
            return Event::Error(why.strip_prefix("failed to solve: ").unwrap_or(why).to_owned());
        }
        if let Some(number) = line.strip_prefix("Dockerfile:").and_then(|number| number.parse().ok()) {
            self.ending = Ending::Lines;
            return Event::Line(number);
        }
        let is_rule = line.len() > 5 && line.bytes().all(|byte| byte == b'-');
        match self.ending {
            Ending::No if is_rule => self.ending = Ending::Again,
            // The rest of a line with a carriage return in it.
            Ending::No if !line.is_empty() => return Event::Output(line.to_owned()),
            Ending::Lines if !is_rule && !line.trim().is_empty() => return Event::Output(line.to_owned()),
            _ => {}
        }
        Event::Nothing
    }
}

fn shown(step: &str, event: Event) -> Event {
    if INTERNAL.iter().any(|name| step.starts_with(name)) { Event::Nothing } else { event }
}

impl Event {
    /// The line of the build's log, if it is worth one.
    pub fn line(&self) -> Option<String> {
        match self {
            Self::Step(step) => Some(step.clone()),
            Self::Output(text) => Some(text.clone()),
            Self::Done { step, seconds } => Some(format!("{} done in {seconds} s", place(step))),
            Self::Cached(step) => Some(format!("{} cached", place(step))),
            Self::Failed { step, why } => Some(format!("{} failed: {why}", place(step))),
            Self::Error(why) => Some(format!("Error: {why}")),
            Self::Line(number) => Some(format!("Dockerfile, line {number}:")),
            Self::Nothing => None,
        }
    }
}

/// "[build 2/3]" of "[build 2/3] RUN make".
fn place(step: &str) -> &str {
    match step.find(']') {
        Some(end) if step.starts_with('[') => &step[..=end],
        _ => step,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builds_lines_become_its_log() {
        let mut progress = Progress::default();
        let said = "#0 building with \"default\" instance using docker driver\n\n\
            #1 [internal] load build definition from Dockerfile\n#1 transferring dockerfile: 95B done\n#1 DONE 0.0s\n\n\
            #4 [1/3] FROM debian-12\n#4 CACHED\n\n#5 [2/3] RUN make\n#5 0.082 cc app.c\n#5 0.090 \n\
            #6 [other 1/1] RUN true\n#6 DONE 0.1s\n\n#5 [2/3] RUN make\n#5 0.30 #6 ERROR: not me\n\
            #5 ERROR: process \"/bin/sh -c make\" did not complete successfully: exit code: 2\n\
            ------\n > [2/3] RUN make:\n0.082 cc app.c\n------\nDockerfile:3\n--------------------\n   2 |     # made\n\
            \x20  3 | >>> RUN make\n--------------------\nERROR: failed to solve: process \"make\" did not: exit code: 2";
        let log: Vec<String> = said.lines().filter_map(|line| progress.read(line).line()).collect();
        assert_eq!(
            log,
            [
                "[1/3] FROM debian-12",
                "[1/3] cached",
                "[2/3] RUN make",
                "cc app.c",
                "",
                "[other 1/1] RUN true",
                "[other 1/1] done in 0.1 s",
                "[2/3] RUN make",
                "#6 ERROR: not me",
                "[2/3] failed: process \"/bin/sh -c make\" did not complete successfully: exit code: 2",
                "Dockerfile, line 3:",
                "   2 |     # made",
                "   3 | >>> RUN make",
                "Error: process \"make\" did not: exit code: 2",
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn any_line_is_read(lines in proptest::collection::vec("[#0-9A-Z .:\\[\\]-]{0,30}", 0..20)) {
            let mut progress = Progress::default();
            for line in lines {
                let _ = progress.read(&line).line();
            }
        }
    }
}
