//! Arguments of `torpor certs`.

use clap::{Args, Subcommand};

/// Arguments of `torpor certs`.
#[derive(Debug, Args)]
pub struct Certs {
    #[command(subcommand)]
    pub command: Option<CertsCommand>,
}

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Make the certificate of a host that is elsewhere, with its right in etcd.
    Issue {
        /// Id of the host, as in its settings.
        host: String,
    },
    /// Put another CA and other certificates in the place of the fleet's, while it runs.
    #[command(after_help = "\
Three steps: the next CA is trusted beside the old one; every certificate is made
anew by the next CA; the old CA is dropped. Each waits until every service has
taken up what changed. One that was broken off is taken up by the next call.

Services of this fleet read their files by themselves. With --step there is time
between two steps to bring the files to hosts and clients that are elsewhere.")]
    Rotate {
        /// Take one step only.
        #[arg(long)]
        step: bool,
    },
}
