//! Merging the sources.

use std::path::{Path, PathBuf};

use clap::{Args as _, FromArgMatches as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Flags every service takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Cli {
    /// TOML file with the settings.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the resulting settings, secrets hidden, and exit.
    #[arg(long)]
    pub print_config: bool,
    /// Override one setting; may be repeated.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
}

impl Cli {
    /// The arguments of this process, which is `torpor-<service>`. Does not
    /// return for `--help`, `--version` or a mistake: clap prints and exits.
    #[must_use]
    pub fn parse_as(service: &'static str, about: &'static str) -> Self {
        let mut command = Self::augment_args(clap::Command::new(service))
            .display_name(format!("torpor-{service}"))
            .version(env!("CARGO_PKG_VERSION")) // the workspace's, like every service's
            .about(about);
        let matches = command.get_matches_mut();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
    }
}

/// Why the settings cannot be used. Each message names the source and the key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the settings file {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not valid TOML: {message}")]
    Parse { path: PathBuf, message: String },
    /// `--set` without `=`, or through something that is not a table.
    #[error("--set {argument}: {message}")]
    Set { argument: String, message: &'static str },
    /// A key is unknown, or a value has the wrong type or breaks a rule.
    #[error("settings: {message}")]
    Invalid { message: String },
}

/// Loads the settings of `service` ("scheduler"). `None` means `--print-config`
/// printed them and the caller should exit successfully.
pub fn load<T: Serialize + DeserializeOwned>(service: &str, cli: &Cli) -> Result<Option<T>, Error> {
    let settings: T = load_from(service, cli.config.as_deref(), std::env::vars(), &cli.set)?;
    if cli.print_config {
        let text =
            toml::to_string_pretty(&settings).map_err(|e| Error::Invalid { message: e.to_string() })?;
        println!("{text}");
        return Ok(None);
    }
    Ok(Some(settings))
}

/// [`load`] with every source given, for tests and tools.
pub fn load_from<T: DeserializeOwned>(
    service: &str,
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    set: &[String],
) -> Result<T, Error> {
    let mut table = match file {
        None => Table::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| Error::Read { path: path.to_owned(), source })?;
            text.parse::<Table>()
                .map_err(|e| Error::Parse { path: path.to_owned(), message: e.to_string() })?
        }
    };
    let prefix = format!("TORPOR_{}_", service.to_uppercase().replace('-', "_"));
    let mut overrides: Vec<(String, String)> = environment
        .filter_map(|(name, value)| {
            let key = name.strip_prefix(&prefix)?.to_lowercase().replace("__", ".");
            Some((key, value))
        })
        .collect();
    overrides.sort();
    for argument in set {
        let (key, value) = argument.split_once('=').ok_or_else(|| Error::Set {
            argument: argument.clone(),
            message: "must have the form key.path=value",
        })?;
        overrides.push((key.to_owned(), value.to_owned()));
    }
    for (key, value) in overrides {
        insert(&mut table, &key, parse_value(&value))
            .map_err(|message| Error::Set { argument: key.clone(), message })?;
    }
    Value::Table(table).try_into().map_err(|e: toml::de::Error| Error::Invalid { message: e.to_string() })
}

/// Checks rules about settings: what must hold, and a sentence that begins with the
/// key for when it does not.
///
/// # Errors
/// [`Error::Invalid`] with the sentence of the first rule that is broken.
pub fn check<T: Into<String>>(rules: impl IntoIterator<Item = (bool, T)>) -> Result<(), Error> {
    match rules.into_iter().find(|(holds, _)| !holds) {
        Some((_, sentence)) => Err(Error::Invalid { message: sentence.into() }),
        None => Ok(()),
    }
}

fn parse_value(text: &str) -> Value {
    // TOML reads documents, not values: parse `v = TEXT` and take v.
    format!("v = {text}")
        .parse::<Table>()
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn insert(table: &mut Table, path: &str, value: Value) -> Result<(), &'static str> {
    let (parents, last) = match path.rsplit_once('.') {
        Some((parents, last)) => (parents.split('.').collect(), last),
        None => (Vec::new(), path),
    };
    let mut current = table;
    for part in parents {
        current = current
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or("goes through a key that is not a table")?;
    }
    current.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{S3Settings, Secret};
    use serde::Deserialize;

    #[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Example {
        port: u16,
        name: String,
        s3: S3Settings,
    }

    fn load_example(file: &str, environment: &[(&str, &str)], set: &[&str]) -> Result<Example, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("example.toml");
        std::fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
        load_from("edge-proxy", Some(&path), environment, &set)
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_defaults() {
        let file = "port = 1\nname = 'file'\n[s3]\nregion = 'file'\n";
        let environment = [
            ("TORPOR_EDGE_PROXY_PORT", "2"),
            ("TORPOR_EDGE_PROXY_S3__REGION", "env"),
            ("TORPOR_OTHER_PORT", "9"),
        ];
        let loaded = load_example(file, &environment, &["s3.region=flag"]).unwrap();
        assert_eq!((loaded.port, loaded.name.as_str(), loaded.s3.region.as_str()), (2, "file", "flag"));
        assert!(loaded.s3.path_style, "defaults fill the rest");
    }

    #[test]
    fn mistakes_name_the_key() {
        for (file, set, expected) in [
            ("prot = 1", "port=1", "prot"),
            ("[s3]\nsecret = 1", "port=1", "secret"),
            ("port = 'x'", "name=a", "port"),
            ("port = 1", "name", "key.path=value"),
            ("port = 1", "port.deep=1", "not a table"),
        ] {
            let error = load_example(file, &[], &[set]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_first_broken_rule_is_named() {
        assert!(check([(true, "port must be set")]).is_ok());
        let broken = check([(true, "a: at least 1"), (false, "b must be 1 to 60"), (false, "c")]);
        assert_eq!(broken.unwrap_err().to_string(), "settings: b must be 1 to 60");
    }

    #[test]
    fn secrets_do_not_show() {
        let settings =
            S3Settings { secret_access_key: Some(Secret::new("hunter2")), ..S3Settings::default() };
        let printed = format!("{settings:?}{}", toml::to_string(&settings).unwrap());
        assert!(!printed.contains("hunter2") && printed.contains("<hidden>"), "{printed}");
    }
}
