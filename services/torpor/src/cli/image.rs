//! Arguments of the image commands.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `torpor base …`
#[derive(Debug, Subcommand)]
pub enum Base {
    /// Make a base image from Debian's packages.
    Build {
        /// Which base.
        #[arg(default_value = "debian-12")]
        name: String,
        /// Make it again even when it exists.
        #[arg(long)]
        rebuild: bool,
        /// Show the whole log.
        #[arg(short, long)]
        verbose: bool,
    },
    /// List the base images that a FROM line can name.
    List,
}

/// `torpor image …`
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Create an image and build its first version.
    #[command(after_help = "\
Examples:
  torpor image create web --artifact ./app
  torpor image create web --artifact app.zip --memory 1024 --env LOG=debug
  torpor image create web --artifact s3://torpor-artifacts/app.zip --hook-port 9000 --ready-hook=120s

The artifact is a directory or a zip with a Dockerfile at its root, here or in S3.")]
    Create(Build),
    /// Replace an image's configuration and build a new version.
    Update(Build),
    /// List images.
    #[command(visible_alias = "ls")]
    List {
        /// Only names that contain this text.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Show one image.
    Get {
        /// Name or ARN.
        image: String,
    },
    /// List an image's versions, newest first.
    Versions {
        /// Name or ARN.
        image: String,
    },
    /// List the builds of a version, with sizes.
    Builds {
        /// Name or ARN.
        image: String,
        /// Version; default: the newest.
        #[arg(long)]
        version: Option<String>,
    },
    /// Print a build's log.
    Logs {
        /// Name or ARN.
        image: String,
        /// Version; default: the newest.
        #[arg(long)]
        version: Option<String>,
        /// Wait for more until the build ends.
        #[arg(short, long)]
        follow: bool,
    },
    /// Delete an image with its versions and snapshots.
    Delete {
        /// Name or ARN.
        image: String,
        /// Delete only this version.
        #[arg(long)]
        version: Option<String>,
        /// Return without waiting until it is gone.
        #[arg(long)]
        no_wait: bool,
    },
}

/// Arguments of `torpor image create` and `update`.
#[derive(Debug, Args)]
pub struct Build {
    /// Name of the image: letters, digits, '-' and '_', at most 64.
    pub name: String,
    /// Directory, zip, or s3:// URI of a zip, with a Dockerfile at its root.
    #[arg(short, long, value_name = "PATH|S3-URI")]
    pub artifact: String,
    /// Base image by name.
    #[arg(long, default_value = "debian-12", value_name = "NAME")]
    pub base: String,
    /// Guest memory in MiB: 512, 1024, 2048, 4096 or 8192; the fleet's default (2048) without.
    #[arg(short, long, value_name = "MIB")]
    pub memory: Option<u32>,
    /// Environment variable of the app; may be repeated.
    #[arg(short, long = "env", value_name = "KEY=VALUE")]
    pub environment: Vec<String>,
    /// File of KEY=VALUE lines; '#' starts a comment.
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Free text about the image.
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Tag; may be repeated.
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    pub tags: Vec<String>,
    /// Give the app every Linux capability of its guest, not a container's set.
    #[arg(long)]
    pub all_capabilities: bool,
    /// End open connections when a microVM is suspended, as AWS does; without, they sleep and wake with it.
    #[arg(long)]
    pub end_connections_at_suspend: bool,
    #[command(flatten)]
    pub hooks: Hooks,
    /// Return at once instead of following the build.
    #[arg(long)]
    pub no_follow: bool,
    /// Follow the build (the default).
    #[arg(long, conflicts_with = "no_follow", hide = true)]
    pub follow: bool,
    /// Show the build's log while following.
    #[arg(short, long)]
    pub verbose: bool,
    /// Idempotency token; default: a fresh one.
    #[arg(long, value_name = "TOKEN")]
    pub client_token: Option<String>,
}

/// Lifecycle hooks: each flag switches its hook on, "=TIMEOUT" bounds it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Lifecycle hooks (each may be followed by =TIMEOUT)")]
pub struct Hooks {
    /// Port on guest loopback that answers hooks.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub hook_port: Option<u16>,
    /// Called during the build until it answers 200.
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub ready_hook: Option<String>,
    /// Called once on a clone of the new snapshot.
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub validate_hook: Option<String>,
    /// Called after launch, before traffic.
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub run_hook: Option<String>,
    /// Called after every wake, before traffic.
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub resume_hook: Option<String>,
    /// Called before every suspend.
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub suspend_hook: Option<String>,
    /// Called before the microVM is released.
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub terminate_hook: Option<String>,
}
