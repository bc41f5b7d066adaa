//! The agent's own few words, on the serial console, and its way to die.

use std::io::Write as _;

/// Writes one line. The console is slow; never call this on the wake path.
pub fn say(message: &str) {
    // Nothing can be done when the console itself fails.
    let _ = writeln!(std::io::stderr(), "torpor-guest-agent: {message}");
}

/// Makes a panic of any thread end the microVM instead of leaving it half alive.
pub fn die_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("panic: {panic}"));
        std::process::abort();
    }));
}
