//! Arguments of the access key commands.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `torpor key …`
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make an access key for the AWS-compatible API.
    #[command(after_help = "\
Examples:
  torpor key create --description ci
  torpor key create --policy launch-web.json --expires 90d
  torpor key create -o json | jq -r .secretAccessKey

The secret is shown once and cannot be read again. Without --policy the key may do
everything; with it, what a statement allows and none denies. A policy file is in
IAM's form, for example:

  {
    \"Statement\": [
      {
        \"Effect\": \"Allow\",
        \"Action\": [\"lambda:*Microvm\", \"lambda:CreateMicrovmAuthToken\"],
        \"Resource\": \"arn:aws:lambda:*:*:microvm-image:web\"
      },
      {
        \"Effect\": \"Allow\",
        \"Action\": [\"lambda:PassNetworkConnector\", \"iam:PassRole\"],
        \"Resource\": \"*\"
      }
    ]
  }

Actions are those of the API (lambda:RunMicrovm, lambda:CreateMicrovmImage, ...),
iam:PassRole for roles that a call hands over, lambda:PassNetworkConnector for
connectors, which a launch without any hands over too, and s3:GetObject for the
artifact (arn:aws:s3:::BUCKET/KEY) that an image is built from. What is said of
an image counts for its microVMs. \"*\" stands for any text, \"?\" for one character.
Conditions, principals, NotAction and NotResource are not known and refused.")]
    Create(Create),
    /// List access keys, without their secrets.
    #[command(visible_alias = "ls")]
    List,
    /// Delete access keys; what they sign is refused at once.
    Delete {
        /// Ids of the keys.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

/// Arguments of `torpor key create`.
#[derive(Debug, Args)]
pub struct Create {
    /// What the key is for, at most 256 characters.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub description: String,
    /// File that says what it may do, "-" for standard input; default: everything.
    #[arg(long, value_name = "FILE.json")]
    pub policy: Option<PathBuf>,
    /// When it stops working: in 90d, 12h, 30m, or at 2027-01-31T00:00:00Z; default: never.
    #[arg(long, value_name = "TIME")]
    pub expires: Option<String>,
}
