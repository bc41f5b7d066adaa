//! Why a guest is over, from what is left of it: QEMU's event, the console's end, the process's exit.

use crate::engine::ExitReason;
use crate::process::Exit;

/// Longest part of a panic line that is passed on: it is the guest's own text.
const PANIC_CHARS_MAX: usize = 200;

/// What QEMU said when it stopped the guest for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shutdown {
    /// Powered off.
    Guest,
    /// Rebooted: asked for, or forced by the kernel after a panic.
    Reset,
    /// From outside: a signal or a command. The process's exit tells more.
    Host,
    /// Nobody was connected when it happened; only the guest can have done it.
    Unseen,
}

impl Shutdown {
    pub(super) fn of_event(reason: &str) -> Self {
        match reason {
            "guest-shutdown" => Shutdown::Guest,
            "guest-reset" | "guest-panic" | "subsystem-reset" => Shutdown::Reset,
            _ => Shutdown::Host,
        }
    }

    /// The reason, if the guest is behind it. The guest writes its console, so it can make a reboot look like a panic, but
    /// never one machine's end like another's.
    pub(super) fn reason(self, console: &str) -> Option<ExitReason> {
        let panic = || panic_line(console).map(ExitReason::GuestPanic);
        match self {
            Shutdown::Guest => Some(ExitReason::GuestShutdown),
            Shutdown::Reset => Some(panic().unwrap_or(ExitReason::GuestReset)),
            Shutdown::Unseen => Some(panic().unwrap_or_else(|| last_words(console))),
            Shutdown::Host => None,
        }
    }
}

/// The kernel says which of the two it does, at a level that `quiet` does not hide.
fn last_words(console: &str) -> ExitReason {
    if console.contains("reboot: Restarting system") {
        ExitReason::GuestReset
    } else {
        ExitReason::GuestShutdown
    }
}

/// The last line that announces a panic; `end Kernel panic` comes after the trace and repeats the first.
fn panic_line(console: &str) -> Option<String> {
    let line = console.lines().rev().find(|line| line.contains("Kernel panic - not syncing"))?;
    let text = &line[line.find("Kernel panic")?..];
    let text = text.split(" ]---").next().unwrap_or(text);
    Some(text.chars().filter(|c| !c.is_control()).take(PANIC_CHARS_MAX).collect())
}

/// The reason when the process ended without the guest's doing.
pub(super) fn of_process(exit: Exit, message: String) -> ExitReason {
    match exit {
        Exit::Signal(signal) => ExitReason::Killed(signal),
        Exit::Code(code) => ExitReason::Failed { code: Some(code), message },
        Exit::Unknown => ExitReason::Failed { code: None, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons() {
        let panic = "x\r\n[    2.1] Kernel panic - not syncing: sysrq triggered crash\r\n[    2.1] CPU: 0\r\n\
                     [    2.2] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\r\n";
        let line = ExitReason::GuestPanic("Kernel panic - not syncing: sysrq triggered crash".into());
        let reset = "[    3.0] reboot: Restarting system\r\n";
        let cases = [
            (Shutdown::Guest, panic, Some(ExitReason::GuestShutdown)),
            (Shutdown::Reset, panic, Some(line.clone())),
            (Shutdown::Reset, "", Some(ExitReason::GuestReset)),
            (Shutdown::Unseen, panic, Some(line)),
            (Shutdown::Unseen, reset, Some(ExitReason::GuestReset)),
            (Shutdown::Unseen, "reboot: Power down", Some(ExitReason::GuestShutdown)),
            (Shutdown::Host, panic, None),
        ];
        for (shutdown, console, expected) in cases {
            assert_eq!(shutdown.reason(console), expected, "{shutdown:?} {console}");
        }
    }

    #[test]
    fn a_panic_line_is_bounded() {
        let console = format!("Kernel panic - not syncing: {}\u{7}", "x".repeat(5000));
        assert_eq!(panic_line(&console).unwrap().len(), PANIC_CHARS_MAX);
    }
}
