//! Everything that can go wrong with a command, as its caller is to
//! understand it. The server layer turns each into a gRPC status.

/// Why a command failed. `Display` is the sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("generation {offered} is older than {held}, which this host holds")]
    StaleGeneration { held: u64, offered: u64 },
    /// A launch or wake that was sent under another lease of this host than it has.
    #[error("the host has had another lease since this was sent")]
    LeaseChanged,
    #[error("this host does not hold {id}")]
    NotHere { id: String },
    #[error("the microVM has ended: {reason}")]
    Ended { reason: String },
    #[error("{0}")]
    Conflict(String),
    /// A field breaks a rule: path and description.
    #[error("invalid argument: {}", .0.iter().map(|(field, why)| format!("{field}: {why}")).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<(String, String)>),
    /// No room: memory, slots or mailbox.
    #[error("{0}")]
    Capacity(String),
    /// Stored bytes do not match their digest; nothing was started from them.
    #[error("stored object {object} is corrupt; nothing was started from it")]
    Corrupt {
        /// Key or path of the object.
        object: String,
    },
    #[error("stored object {object} is missing")]
    Missing {
        /// Key or path of the object.
        object: String,
    },
    /// S3 or etcd is out of reach.
    #[error("{0}")]
    StoreUnavailable(String),
    #[error(
        "no space left on the host's disk for {path} (limit: {limit}); free space or grow the file system, then try again"
    )]
    DiskFull { path: String, limit: String },
    #[error(
        "the microVM stands still in the middle of a write, for which the host's disk has no space (limit: {limit}); it goes \
         on by itself when there is space, and can be suspended then"
    )]
    OutOfSpace { limit: String },
    #[error("{message}")]
    Hook {
        hook: &'static str,
        message: String,
        /// HTTP status; 0 when there was no answer.
        http_status: u32,
        /// True when time ran out.
        timed_out: bool,
    },
    /// The guest did not answer, misbehaved or ended.
    #[error("{message}")]
    Guest {
        message: String,
        /// "timed_out", "app_exited", "guest_ended" or "no_answer".
        outcome: &'static str,
        /// Exit status of the app, when it ended.
        exit_code: Option<i32>,
    },
    #[error("{0}")]
    Engine(String),
    /// A newer command or the caller's hang-up stopped it.
    #[error("{0}")]
    Interrupted(String),
    /// A bug, or a file system that refuses what it must do.
    #[error("{0}")]
    Internal(String),
}

impl HostError {
    /// A start that was interrupted because the microVM is to end.
    pub fn asleep() -> Self {
        Self::Conflict("the microVM is suspended".to_owned())
    }

    pub fn awake() -> Self {
        Self::Conflict("the microVM is awake".to_owned())
    }

    pub fn terminating() -> Self {
        Self::Interrupted("the microVM is being terminated".to_owned())
    }

    /// The message of an error with all its sources, and whether one of them is a full disk.
    pub fn chain(error: &(dyn std::error::Error + 'static)) -> (String, bool) {
        let mut text = error.to_string();
        let mut full = false;
        let mut next = Some(error);
        while let Some(error) = next {
            full |= error.downcast_ref::<std::io::Error>().is_some_and(is_disk_full);
            if let Some(source) = error.source() {
                text.push_str(": ");
                text.push_str(&source.to_string());
            }
            next = error.source();
        }
        (text, full)
    }
}

pub fn is_disk_full(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
        || matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_found_under_any_error() {
        #[derive(Debug, thiserror::Error)]
        #[error("writing the difference")]
        struct Outer(#[source] std::io::Error);
        let (text, full) = HostError::chain(&Outer(std::io::Error::from_raw_os_error(libc::ENOSPC)));
        assert!(full && text.starts_with("writing the difference: "), "{text}");
        let (_, full) = HostError::chain(&Outer(std::io::Error::from_raw_os_error(libc::EIO)));
        assert!(!full);
    }
}
