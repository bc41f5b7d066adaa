//! One TOML file per service, overridable by environment and flags.
//!
//! Precedence, weakest first: defaults, file, environment (`TORPOR_<SERVICE>_<KEY>`, `__` between levels),
//! `--set key.path=value`. Unknown keys are errors that name the key; `--print-config` prints the result with
//! secrets hidden. Values from the environment and from flags are read as TOML when they parse as TOML, else
//! as text.

mod load;
mod secret;
mod shared;

pub use load::{Cli, Error, check, load, load_from};
pub use secret::Secret;
pub use shared::{EtcdSettings, S3Settings, TelemetrySettings, TlsSettings};
