//! Arguments of the commands about own domains.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `torpor domain …`
#[derive(Debug, Subcommand)]
pub enum Domain {
    /// Bind a name to a microVM, or a wildcard to an image.
    #[command(after_help = "\
Examples:
  torpor domain add app.example.com --microvm ID --cert fullchain.pem --key privkey.pem
  torpor domain add '*.apps.example.com' --image web --cert fullchain.pem --key privkey.pem

The edge then shows this certificate to clients that ask for the name, and passes
their requests on as it does under the microVM's own endpoint: a token or a browser
session is needed all the same. Under an image's wildcard each of its microVMs has
the first label of its endpoint: if torpor get ID says that the endpoint is
LABEL.microvms.localhost, it is LABEL.apps.example.com, too.

Have DNS lead the name to the edge: an A, AAAA or CNAME record.

The certificate file holds the server's certificate first and then what its issuer
gave with it (for Let's Encrypt: fullchain.pem); it must be for the name and valid
now. The key file holds its private key, not encrypted; the key goes to the fleet's
etcd and is never shown again. A name belongs to one microVM or image at a time and
goes with it: when the microVM ends or the image is deleted.")]
    Add(Add),
    /// List own domains, and say whose certificates expire soon.
    #[command(visible_alias = "ls")]
    List,
    /// Show one own domain.
    Get {
        /// Name of the domain.
        name: String,
    },
    /// Replace a certificate and its key; open connections stay.
    #[command(after_help = "\
Example, as the deploy hook of an ACME client:
  torpor domain update app.example.com --cert fullchain.pem --key privkey.pem")]
    Update(Update),
    /// Remove own domains; requests for them are refused at once.
    #[command(name = "rm", visible_alias = "delete")]
    Remove {
        /// Names of the domains.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Arguments of `torpor domain add`.
#[derive(Debug, Args)]
pub struct Add {
    /// Name, like app.example.com for a microVM, or '*.apps.example.com' for an image.
    pub name: String,
    /// MicroVM that is reached under the name.
    #[arg(long, value_name = "ID", required_unless_present = "image", conflicts_with = "image")]
    pub microvm: Option<String>,
    /// Image (name or ARN) whose microVMs are reached under the wildcard.
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    #[command(flatten)]
    pub certificate: Certificate,
}

/// Arguments of `torpor domain update`.
#[derive(Debug, Args)]
pub struct Update {
    /// Name of the domain.
    pub name: String,
    #[command(flatten)]
    pub certificate: Certificate,
}

/// The files of a certificate.
#[derive(Debug, Args)]
pub struct Certificate {
    /// File with the certificate chain in PEM, at most 10 certificates.
    #[arg(long, value_name = "FILE")]
    pub cert: PathBuf,
    /// File with the private key in PEM, "-" for standard input.
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
}
