//! Process 1 of every microVM. Boots the guest, starts the app the way a
//! container runtime would, and serves its host-agent over the microVM's link.
//!
//! The same binary run as `torpor-app-init` or `torpor-shell-init` (by itself, never by a person) is the short
//! life between fork and exec of the app, or of a shell beside it.
//!
//! It is deliberately plain: threads and blocking calls, no runtime. Right after a restore the guest's CPU is
//! cold, and the repair exchange that runs then is on every wake's path; each page of code it touches costs.

use std::process::ExitCode;

mod app;
mod awake;
mod boot;
mod console;
mod hooks;
mod identity;
mod loopback;
mod netlink;
mod quiet;
mod ready;
mod relay;
mod server;
mod shell;
mod stats;
mod tcp_table;

fn main() -> ExitCode {
    match std::env::args_os().next() {
        Some(name) if name == app::INIT_NAME => return app::init::main(),
        Some(name) if name == app::SHELL_INIT_NAME => return app::enter::main(),
        _ => {}
    }
    if std::process::id() != 1 {
        eprintln!("torpor-guest-agent: runs only as process 1 of a microVM");
        return ExitCode::FAILURE;
    }
    console::die_on_panic();
    match boot::boot().and_then(server::Server::start) {
        Ok(server) => server.run(),
        Err(error) => {
            // Process 1 ending is a kernel panic, and the engine sees the guest end: fail closed.
            console::say(&format!("boot failed: {error}"));
            ExitCode::FAILURE
        }
    }
}
