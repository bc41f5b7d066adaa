//! How an app ended, for people.

use api::guest::v1::AppExited;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppEnd {
    /// Exit status; -1 when a signal ended it.
    pub exit_code: i32,
    pub signal: i32,
    pub out_of_memory: bool,
}

impl From<AppExited> for AppEnd {
    fn from(exited: AppExited) -> Self {
        Self { exit_code: exited.exit_code, signal: exited.signal, out_of_memory: exited.out_of_memory }
    }
}

impl AppEnd {
    /// How it ended, in a guest of so much memory. The app is the first process of a process namespace: no signal from
    /// inside can kill it, but the kernel turns its `reboot(2)` into SIGINT for power-off and SIGHUP for restart.
    pub fn sentence(self, memory_mib: u32) -> String {
        if self.out_of_memory {
            return format!(
                "The guest ran out of its {memory_mib} MiB of memory, and its kernel killed the application. Build the \
                 image with more: --memory."
            );
        }
        match self.signal {
            0 => format!("The application exited with status {}.", self.exit_code),
            libc::SIGINT => "The guest powered off.".to_owned(),
            libc::SIGHUP => "The guest restarted itself, which ends a microVM.".to_owned(),
            signal => format!("The application was killed by signal {signal}."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_a_sentence() {
        for (exit_code, signal, out_of_memory, start) in [
            (3, 0, false, "The application exited with status 3."),
            (-1, 9, false, "The application was killed by signal 9."),
            (-1, 9, true, "The guest ran out of its 512 MiB of memory"),
            (137, 0, true, "The guest ran out of its 512 MiB of memory"),
            (-1, 2, false, "The guest powered off."),
        ] {
            let sentence = AppEnd { exit_code, signal, out_of_memory }.sentence(512);
            assert!(sentence.starts_with(start), "{sentence}");
        }
    }
}
