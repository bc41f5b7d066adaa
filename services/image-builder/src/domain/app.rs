//! How a built image's app is started, read from its OCI configuration.

use std::collections::BTreeMap;

use api::image::v1::AppConfiguration;
use serde::Deserialize;

/// Most ports an image may expose.
const PORTS_MAX: usize = 100;

/// Why an image cannot be started, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not what BuildKit writes.
    #[error("The image's configuration cannot be read: {0}.")]
    Unreadable(String),
    #[error("The image has neither ENTRYPOINT nor CMD, so there is nothing to run.")]
    NoStartCommand,
}

#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    config: Config,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: String,
    user: String,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: String,
}

/// Reads the JSON of an OCI image configuration.
pub fn read(json: &[u8]) -> Result<AppConfiguration, Refusal> {
    let image: Image =
        serde_json::from_slice(json).map_err(|error| Refusal::Unreadable(error.to_string()))?;
    let config = image.config;
    let mut ports: Vec<u32> = config
        .exposed_ports
        .unwrap_or_default()
        .keys()
        .flat_map(|text| tcp_ports(text))
        .take(PORTS_MAX)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    let app = AppConfiguration {
        entrypoint: config.entrypoint.unwrap_or_default(),
        command: config.cmd.unwrap_or_default(),
        environment: config.env.unwrap_or_default(),
        working_directory: config.working_dir,
        user: config.user,
        exposed_ports: ports,
        stop_signal: signal(&config.stop_signal),
    };
    if app.entrypoint.is_empty() && app.command.is_empty() {
        return Err(Refusal::NoStartCommand);
    }
    Ok(app)
}

/// Ports of "8080", "8080/tcp" or "8000-8003/tcp".
fn tcp_ports(text: &str) -> Vec<u32> {
    let range = match text.split_once('/') {
        Some((range, "tcp")) => range,
        Some(_) => return Vec::new(),
        None => text,
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if first > 0 => (first..=last).take(PORTS_MAX).map(u32::from).collect(),
        _ => Vec::new(),
    }
}

/// Number of "SIGTERM", "TERM" or "15"; 0 for an unknown one.
fn signal(text: &str) -> u32 {
    let name = text.trim().to_ascii_uppercase();
    if let Ok(number) = name.parse::<u32>() {
        return if number <= 64 { number } else { 0 };
    }
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse::<nix::sys::signal::Signal>().map_or(0, |signal| signal as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_becomes_an_app() {
        let json = br#"{"created":"x","config":{"User":"app","ExposedPorts":{"8080/tcp":{},"53/udp":{},"80":{},"90-91/tcp":{}},
            "Env":["PATH=/bin"],"Entrypoint":["/app"],"Cmd":["-v"],"WorkingDir":"/srv","StopSignal":"SIGINT"}}"#;
        let app = read(json).unwrap();
        assert_eq!((app.entrypoint, app.command), (vec!["/app".to_owned()], vec!["-v".to_owned()]));
        assert_eq!((app.exposed_ports, app.stop_signal), (vec![80, 90, 91, 8080], 2));
        assert_eq!((app.user.as_str(), app.working_directory.as_str()), ("app", "/srv"));
        assert_eq!(app.environment, ["PATH=/bin"]);
    }

    #[test]
    fn an_image_without_a_command_is_refused() {
        for json in [r#"{"config":{}}"#, r#"{"config":{"Cmd":null,"Entrypoint":[]}}"#, "{}"] {
            assert_eq!(read(json.as_bytes()), Err(Refusal::NoStartCommand));
        }
        assert!(matches!(read(b"["), Err(Refusal::Unreadable(_))));
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("", 0), ("SIGTERM", 15), ("quit", 3), ("9", 9), ("99", 0), ("SIGNONE", 0)] {
            assert_eq!(signal(text), number, "{text}");
        }
    }
}
