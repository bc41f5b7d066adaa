//! The command line: every command, its options and its help text.

pub mod certs;
pub mod domain;
pub mod fleet;
pub mod image;
pub mod key;
pub mod microvm;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::output::Format;

const AFTER_HELP: &str = "\
Examples:
  torpor up --detach                              start a fleet on this machine
  torpor base build debian-12                     make the base image, once
  torpor image create web --artifact ./app        build an image from a directory
  torpor run web --idle 60s                       start a microVM that sleeps when idle
  torpor curl ID /                                call it; a sleeping one wakes
  torpor down                                     put everything to sleep and stop

IDs may be shortened to any unique prefix, with or without \"microvm-\".

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict or wrong
state, 5 unavailable, 6 timed out.";

/// MicroVMs that sleep when nobody calls.
#[derive(Debug, Parser)]
#[command(name = "torpor", version, about, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// Data directory of the fleet; TORPOR_DATA_DIR in the environment sets the default.
    // Not read by clap: usage lines show what the environment sets as if it were required.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value_os_t = default_data_dir(),
        help_heading = "Global options"
    )]
    pub data_dir: PathBuf,
    /// How results are written.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub output: Format,
}

fn default_data_dir() -> PathBuf {
    let set = std::env::var_os("TORPOR_DATA_DIR").filter(|value| !value.is_empty());
    set.map_or_else(|| client::DEFAULT_DATA_DIR.into(), PathBuf::from)
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the whole fleet on this machine.
    Up(fleet::Up),
    /// Put running microVMs to sleep and stop the fleet.
    Down(fleet::Down),
    /// Show the fleet's components and hosts; succeeds only when all are healthy.
    Status,
    /// Print shell exports for other clients, the AWS CLI among them.
    #[command(after_help = "\
Examples:
  eval \"$(torpor env)\"
  aws s3 cp app.zip s3://torpor-artifacts/app.zip
  aws lambda-microvms list-microvms

It names the fleet's endpoints, its root access key, region and CA. To use another
key (torpor key create), set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY afterwards;
S3 takes the root access key only. AWS_CA_BUNDLE holds for every call that the
shell's AWS clients make: use another shell for AWS itself.")]
    Env,
    /// Make and list local base images.
    #[command(subcommand)]
    Base(image::Base),
    /// Build and look after images.
    #[command(subcommand)]
    Image(Box<image::Image>),
    /// Start a microVM.
    Run(microvm::Run),
    /// List microVMs, newest first.
    #[command(visible_alias = "ls")]
    List(microvm::List),
    /// Show one microVM.
    Get(microvm::One),
    /// Show what microVMs used, by day, image, tag or microVM.
    Usage(microvm::Usage),
    /// Put microVMs to sleep.
    Suspend(microvm::Some),
    /// Make a recovery point of a running microVM.
    Checkpoint(microvm::Checkpoint),
    /// Keep a running microVM awake for a time.
    Awake(microvm::Awake),
    /// Wake microVMs.
    Resume(microvm::Some),
    /// End microVMs for good.
    Terminate(microvm::Some),
    /// Make a token for a microVM's endpoint, or revoke those made so far.
    Token(microvm::Token),
    /// Print an app's output.
    Logs(microvm::Logs),
    /// Call a microVM's endpoint; a sleeping one wakes.
    Curl(microvm::Curl),
    /// Make a link that opens a microVM's endpoint in a browser.
    Open(microvm::Open),
    /// Open a root shell in a microVM's container; a sleeping one wakes.
    Shell(microvm::Shell),
    /// Serve microVMs under names of your own, with certificates of your own.
    #[command(subcommand)]
    Domain(domain::Domain),
    /// Make, list and delete access keys of the AWS-compatible API.
    #[command(subcommand)]
    Key(key::Key),
    /// Show hosts; drain and undrain them.
    Hosts(fleet::Hosts),
    /// Show the fleet's certificates; make one for a host; rotate all of them.
    Certs(certs::Certs),
    /// Serve S3 from a directory (started by `torpor up`).
    #[command(hide = true)]
    S3 {
        /// Settings file.
        #[arg(long)]
        config: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_visible_command_says_what_it_is_for() {
        let mut pending = vec![Cli::command()];
        while let Some(command) = pending.pop() {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            pending.extend(command.get_subcommands().cloned());
        }
    }
}
