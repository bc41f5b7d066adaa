//! Collects everything that is wrong with a request, so that a caller mends it
//! in one go instead of one error at a time.

/// What is wrong, field by field.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Violations(Vec<(String, String)>);

/// Most violations one answer lists; a hostile request must not make a huge one.
const VIOLATIONS_MAX: usize = 50;

impl Violations {
    /// Adds a violation of `field` (its path, "idlePolicy.maxIdleDuration").
    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        if self.0.len() < VIOLATIONS_MAX {
            self.0.push((field.into(), message.into()));
        }
    }

    /// Adds a violation unless `holds`.
    pub fn check(&mut self, holds: bool, field: impl Into<String>, message: impl Into<String>) {
        if !holds {
            self.add(field, message);
        }
    }

    /// Keeps the value, or adds the error as a violation of `field`.
    pub fn keep<T, E: std::fmt::Display>(&mut self, field: &str, parsed: Result<T, E>) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(field, error.to_string());
                None
            }
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The violations as `(field, message)`.
    #[must_use]
    pub fn into_vec(self) -> Vec<(String, String)> {
        self.0
    }

    /// `Ok` when nothing is wrong.
    pub fn finish(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl std::fmt::Display for Violations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (field, message)) in self.0.iter().enumerate() {
            write!(f, "{}{field}: {message}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}
