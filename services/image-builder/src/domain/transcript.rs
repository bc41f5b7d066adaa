//! Follows buildah's output to tell, should it fail, at which step and why.

use std::collections::VecDeque;

use crate::domain::build_error::clipped;
use crate::domain::dockerfile::Step;

/// Lines looked back at for the cause.
const TAIL_LINES: usize = 40;
const DETAIL_BYTES_MAX: usize = 400;

/// What buildah said so far.
#[derive(Debug, Default)]
pub struct Transcript {
    /// "3/7", or "3/7 of stage 2/2".
    position: String,
    instruction: String,
    error: String,
    tail: VecDeque<String>,
}

impl Transcript {
    /// Takes note of a line as the user sees it.
    pub fn add(&mut self, line: &str) {
        if let Some(step) = Step::parse(line) {
            let stage = step.prefix.trim().trim_matches(['[', ']']);
            self.position = format!("{}/{}", step.number, step.total);
            if !stage.is_empty() {
                self.position.push_str(&format!(" of stage {stage}"));
            }
            step.text.clone_into(&mut self.instruction);
        } else if let Some(error) = line.strip_prefix("Error: ") {
            error.clone_into(&mut self.error);
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
    }

    /// True when the cause was a full disk.
    pub fn disk_was_full(&self) -> bool {
        let texts = ["no space left on device", "No space left on device", "Could not allocate block"];
        self.tail.iter().any(|line| texts.iter().any(|text| line.contains(text)))
    }

    /// True when the step it stopped at was a FROM.
    pub fn stopped_at_from(&self) -> bool {
        self.instruction.is_empty() || self.instruction.to_ascii_uppercase().starts_with("FROM ")
    }

    /// Why it stopped, without what says itself.
    pub fn detail(&self) -> String {
        // building at STEP "RUN false": exit status 1
        let detail = match self.error.strip_prefix("building at STEP \"") {
            Some(rest) => rest.find("\": ").map_or(rest, |at| &rest[at + 3..]),
            None => &self.error,
        };
        let detail = detail.replace("\"/build/context\"", "the artifact").replace("/build/context/", "");
        clipped(detail.trim().to_owned(), DETAIL_BYTES_MAX)
    }

    pub fn sentence(&self) -> String {
        let detail = self.detail();
        let cause = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        if self.position.is_empty() {
            return format!("The container image build failed{cause}.");
        }
        let instruction = clipped(self.instruction.clone(), DETAIL_BYTES_MAX);
        format!("The container image build failed at step {}: {instruction}{cause}.", self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failing_step_is_named() {
        for (lines, sentence) in [
            (
                vec![
                    "STEP 1/3: FROM debian-12",
                    "STEP 3/3: RUN false",
                    "Error: building at STEP \"RUN false\": exit status 1",
                ],
                "The container image build failed at step 3/3: RUN false (exit status 1).",
            ),
            (
                vec![
                    "[2/2] STEP 2/4: COPY a /b",
                    "Error: building at STEP \"COPY a /b\": checking on sources under \"/build/context\": copier: stat: \"/a\": no such file",
                ],
                "The container image build failed at step 2/4 of stage 2/2: COPY a /b (checking on sources under the artifact: copier: stat: \"/a\": no such file).",
            ),
            (
                vec!["Error: no FROM statement found"],
                "The container image build failed (no FROM statement found).",
            ),
            (vec![], "The container image build failed."),
        ] {
            let mut transcript = Transcript::default();
            lines.iter().for_each(|line| transcript.add(line));
            assert_eq!(transcript.sentence(), sentence);
        }
    }

    #[test]
    fn a_full_disk_is_noticed() {
        let mut transcript = Transcript::default();
        transcript.add("cp: error writing '/x': No space left on device");
        assert!(transcript.disk_was_full());
        (0..TAIL_LINES).for_each(|_| transcript.add("more"));
        assert!(!transcript.disk_was_full());
    }
}
