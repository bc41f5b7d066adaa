//! Follows a build to tell, should it fail, at which step and why.

use std::collections::VecDeque;

use crate::domain::build_error::clipped;
use crate::domain::progress::Event;

/// Lines looked back at for the cause.
const TAIL_LINES: usize = 40;
/// Lines of the last output that the reason has.
const SHOWN_LINES: usize = 3;
const DETAIL_BYTES_MAX: usize = 400;
/// What BuildKit writes around the cause.
const AROUND: [&str; 3] = [
    "failed to compute cache key: ",
    "failed to calculate checksum of ref ",
    "did not complete successfully: ",
];

/// What was said so far.
#[derive(Debug, Default)]
pub struct Transcript {
    /// The step that failed, as "[build 2/3] RUN make".
    failed: String,
    why: String,
    line: Option<usize>,
    error: String,
    tail: VecDeque<String>,
}

impl Transcript {
    pub fn add(&mut self, event: &Event) {
        match event {
            // The first is the cause; others are given up for it.
            Event::Failed { step, why } if self.failed.is_empty() => {
                step.clone_into(&mut self.failed);
                why.clone_into(&mut self.why);
            }
            Event::Line(number) => self.line = Some(*number),
            Event::Error(why) => why.clone_into(&mut self.error),
            Event::Output(text) if self.failed.is_empty() && !text.trim().is_empty() => {
                if self.tail.len() == TAIL_LINES {
                    self.tail.pop_front();
                }
                self.tail.push_back(text.clone());
            }
            // What another step says last is not this one's.
            Event::Step(_) if self.failed.is_empty() => self.tail.clear(),
            _ => {}
        }
    }

    /// True when the cause was a full disk.
    pub fn disk_was_full(&self) -> bool {
        let texts = ["no space left on device", "No space left on device", "disk quota exceeded"];
        let said = self.tail.iter().chain([&self.why, &self.error]);
        said.into_iter().any(|line| texts.iter().any(|text| line.contains(text)))
    }

    /// True when an image of a FROM line could not be had.
    pub fn stopped_at_from(&self) -> bool {
        self.failed.starts_with("[internal] load metadata for ") || self.instruction().starts_with("FROM ")
    }

    fn instruction(&self) -> &str {
        self.failed.split_once("] ").map_or(self.failed.as_str(), |(_, instruction)| instruction)
    }

    /// Why it stopped, without what says itself.
    pub fn detail(&self) -> String {
        let mut detail = if self.why.is_empty() { self.error.as_str() } else { self.why.as_str() };
        for words in AROUND {
            if let Some(at) = detail.find(words) {
                detail = &detail[at + words.len()..];
            }
        }
        // "<one id>::<another>: " in front of a path.
        if let Some((ids, rest)) = detail.split_once(": ")
            && ids.contains("::")
            && !ids.contains(' ')
        {
            detail = rest;
        }
        let detail = detail.replace("exit code: ", "exit code ");
        clipped(detail.trim().to_owned(), DETAIL_BYTES_MAX)
    }

    /// Where it stopped: "at line 4, step 2/3 of stage build: RUN make", with a space in front.
    fn place(&self) -> String {
        let mut place = String::new();
        if let Some(line) = self.line {
            place += &format!(" at line {line}");
        }
        let step = self.failed.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(step, _)| step);
        let step = step.filter(|step| *step != "internal").unwrap_or_default();
        let (stage, number) = step.rsplit_once(' ').unwrap_or(("", step));
        if number.contains('/') {
            place += if place.is_empty() { " at step " } else { ", step " };
            place += number;
            if !stage.is_empty() && !stage.starts_with("stage-") {
                place += &format!(" of stage {stage}");
            }
            place += &format!(": {}", clipped(self.instruction().to_owned(), DETAIL_BYTES_MAX));
        }
        place
    }

    pub fn sentence(&self) -> String {
        let detail = self.detail();
        let cause = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        let shown = self.tail.len().saturating_sub(SHOWN_LINES);
        let last: Vec<&str> = self.tail.iter().skip(shown).map(|line| line.trim()).collect();
        let last = match last.is_empty() || self.failed.is_empty() {
            true => String::new(),
            false => format!(" It said last: {}", clipped(last.join(" / "), DETAIL_BYTES_MAX)),
        };
        format!("The container image build failed{}{cause}.{last}", self.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::progress::Progress;

    fn followed(lines: &[&str]) -> Transcript {
        let (mut progress, mut transcript) = (Progress::default(), Transcript::default());
        lines.iter().for_each(|line| transcript.add(&progress.read(line)));
        transcript
    }

    #[test]
    fn the_failing_step_is_named() {
        for (lines, sentence) in [
            (
                vec![
                    "#5 [2/2] RUN false",
                    "#5 ERROR: process \"/bin/sh -c false\" did not complete successfully: exit code: 1",
                    "Dockerfile:3",
                    "ERROR: failed to solve: process \"/bin/sh -c false\" did not complete successfully: exit code: 1",
                ],
                "The container image build failed at line 3, step 2/2: RUN false (exit code 1).",
            ),
            (
                vec![
                    "#5 [test 2/4] RUN make test",
                    "#5 0.1 one",
                    "#6 [other 2/4] RUN true",
                    "#6 0.1 of the other",
                    "#5 [test 2/4] RUN make test",
                    "#5 0.2 two",
                    "#5 0.3 ",
                    "#5 0.4 three",
                    "#5 0.5 four",
                    "#5 0.6 five",
                    "#5 ERROR: process \"/bin/sh -c make test\" did not complete successfully: exit code: 2",
                    "#6 CANCELED",
                    "------",
                    "0.6 five",
                    "Dockerfile:9",
                ],
                "The container image build failed at line 9, step 2/4 of stage test: RUN make test (exit code 2). It said last: three / \
                 four / five",
            ),
            (
                vec![
                    "#5 [stage-1 2/2] COPY a /b",
                    "#5 ERROR: failed to calculate checksum of ref 5f2::l3x: \"/a\": not found",
                    "Dockerfile:2",
                ],
                "The container image build failed at line 2, step 2/2: COPY a /b (\"/a\": not found).",
            ),
            (
                vec![
                    "#1 [internal] load build definition from Dockerfile",
                    "ERROR: failed to solve: dockerfile parse error on line 2: unknown instruction: NOPE",
                ],
                "The container image build failed (dockerfile parse error on line 2: unknown instruction: NOPE).",
            ),
            (vec![], "The container image build failed."),
        ] {
            assert_eq!(followed(&lines).sentence(), sentence);
        }
    }

    #[test]
    fn a_full_disk_and_an_image_that_is_nowhere_are_noticed() {
        assert!(
            followed(&["#5 [2/2] RUN x", "#5 0.1 cp: error writing '/x': No space left on device"])
                .disk_was_full()
        );
        assert!(!followed(&["#5 [2/2] RUN x", "#5 0.1 fine"]).disk_was_full());
        let nowhere = followed(&[
            "#2 [internal] load metadata for docker.io/library/x:latest",
            "#2 ERROR: no such host",
        ]);
        assert!(nowhere.stopped_at_from() && !nowhere.disk_was_full());
        assert!(!followed(&["#5 [2/2] RUN x", "#5 ERROR: y"]).stopped_at_from());
    }
}
