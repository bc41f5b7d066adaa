//! Checks what a caller chose about a version, and fills in what the caller
//! left to us. Everything that is wrong is collected, with protobuf field paths.

use std::collections::HashMap;
use std::time::Duration;

use api::common::v1::{Architecture, Hook, HookMode, Hooks, Resources, logging::Destination};
use api::image::v1::ImageConfiguration;
use model::limits;
use model::{MemoryClass, Violations};

use crate::domain::dockerfile::Bases;

/// Longest role ARN, description, connector name and log group, in characters.
const ROLE_CHARACTERS_MAX: usize = 2048;
const DESCRIPTION_CHARACTERS_MAX: usize = 2048;
const CONNECTOR_CHARACTERS_MAX: usize = 512;
const LOG_NAME_CHARACTERS_MAX: usize = 512;
/// All environment variables together, in bytes: they live in one record.
const ENVIRONMENT_BYTES_MAX: usize = 64 * 1024;
const TAG_KEY_CHARACTERS_MAX: usize = 128;
const TAG_VALUE_CHARACTERS_MAX: usize = 256;
const CPU_CONFIGURATIONS_MAX: usize = 2;
/// Key limits of S3.
const BUCKET_LENGTH: std::ops::RangeInclusive<usize> = 3..=63;
const KEY_BYTES_MAX: usize = 1024;

const READY_REQUIRED: &str = "The ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle \
                              hook (run, resume, suspend, or terminate) is enabled.";

/// What the fleet offers.
#[derive(Debug, Clone)]
pub struct Offer<'a> {
    /// Base images.
    pub bases: &'a Bases,
    /// Region of base ARNs.
    pub region: &'a str,
    /// Base of a request that names none.
    pub default_base: &'a str,
    /// CPU kinds.
    pub architectures: &'a [Architecture],
    /// Memory of a request that names none, in MiB.
    pub memory_default_mib: u32,
}

/// Where an artifact is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Uri {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
}

impl S3Uri {
    /// Reads "s3://bucket/key".
    #[must_use]
    pub fn parse(uri: &str) -> Option<Self> {
        let (bucket, key) = uri.strip_prefix("s3://")?.split_once('/')?;
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
        let good = BUCKET_LENGTH.contains(&bucket.len())
            && bucket.chars().all(allowed)
            && !key.is_empty()
            && key.len() <= KEY_BYTES_MAX
            && !key.chars().any(char::is_control);
        good.then(|| Self {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        })
    }
}

/// Checks a configuration and returns it complete: base and its version, memory
/// and CPU kinds filled in.
pub fn complete(
    configuration: Option<ImageConfiguration>,
    offer: &Offer<'_>,
    violations: &mut Violations,
) -> ImageConfiguration {
    let mut given = configuration.unwrap_or_default();
    let uri = given
        .code_artifact
        .as_ref()
        .map_or("", |artifact| artifact.uri.as_str());
    violations.check(
        S3Uri::parse(uri).is_some(),
        "configuration.code_artifact.uri",
        "must have the form 's3://bucket/key'",
    );
    base(&mut given, offer, violations);
    sizes(&mut given, offer, violations);
    environment(&given.environment_variables, violations);
    if let Some(hooks) = &given.hooks {
        check_hooks(hooks, violations);
    }
    text(
        "configuration.build_role_arn",
        &given.build_role_arn,
        ROLE_CHARACTERS_MAX,
        violations,
    );
    text(
        "configuration.description",
        &given.description,
        DESCRIPTION_CHARACTERS_MAX,
        violations,
    );
    let connectors = &given.egress_network_connectors;
    violations.check(
        connectors.len() <= 1,
        "configuration.egress_network_connectors",
        "must be at most 1",
    );
    for connector in connectors.iter().take(1) {
        text(
            "configuration.egress_network_connectors[0]",
            connector,
            CONNECTOR_CHARACTERS_MAX,
            violations,
        );
    }
    if let Some(Destination::CloudWatch(group)) =
        given.logging.as_ref().and_then(|to| to.destination.as_ref())
    {
        let path = "configuration.logging.cloud_watch";
        text(
            &format!("{path}.log_group"),
            &group.log_group,
            LOG_NAME_CHARACTERS_MAX,
            violations,
        );
        text(
            &format!("{path}.log_stream"),
            &group.log_stream,
            LOG_NAME_CHARACTERS_MAX,
            violations,
        );
        violations.check(
            !group.log_stream.contains([':', '*']),
            format!("{path}.log_stream"),
            "must not contain ':' or '*'",
        );
    }
    given
}

fn base(given: &mut ImageConfiguration, offer: &Offer<'_>, violations: &mut Violations) {
    if given.base_image_arn.is_empty() {
        given.base_image_arn = offer.default_base.to_owned();
    }
    let arn = &given.base_image_arn;
    let prefix = format!("arn:aws:lambda:{}:aws:microvm-image:", offer.region);
    let name = if arn.starts_with("arn:") {
        arn.strip_prefix(&prefix)
    } else {
        Some(arn.as_str())
    };
    let version = Some(given.base_image_version.as_str()).filter(|version| !version.is_empty());
    match name.and_then(|name| offer.bases.resolve(name, version)) {
        Some(number) => given.base_image_version = number.to_string(),
        None => {
            let message = format!(
                "No managed MicroVM Image with arn {arn} and version {} is available. {}",
                version.unwrap_or("latest"),
                offer.bases.sentence()
            );
            violations.add("configuration.base_image_arn", message);
        }
    }
}

/// Name of the base a complete configuration was given.
#[must_use]
pub fn base_name(configuration: &ImageConfiguration) -> &str {
    let arn = &configuration.base_image_arn;
    if arn.starts_with("arn:") {
        arn.rsplit(':').next().unwrap_or(arn)
    } else {
        arn
    }
}

fn sizes(given: &mut ImageConfiguration, offer: &Offer<'_>, violations: &mut Violations) {
    let memory = given.resources.get_or_insert(Resources {
        minimum_memory_mib: offer.memory_default_mib,
    });
    violations.check(
        MemoryClass::of(memory.minimum_memory_mib).is_some(),
        "configuration.resources.minimum_memory_mib",
        "must be one of 512, 1024, 2048, 4096, 8192",
    );
    let path = "configuration.cpu_configurations";
    let cpus = &given.cpu_configurations;
    violations.check(cpus.len() <= CPU_CONFIGURATIONS_MAX, path, "must be at most 2");
    for (index, cpu) in cpus.iter().enumerate() {
        let offered = offer.architectures.contains(&cpu.architecture());
        violations.check(
            offered,
            format!("{path}[{index}].architecture"),
            "no host of this fleet has this architecture",
        );
        let repeated = cpus[..index].contains(cpu);
        violations.check(
            !repeated,
            format!("{path}[{index}].architecture"),
            "is named twice",
        );
    }
    let path = "configuration.additional_os_capabilities";
    let capabilities = &given.additional_os_capabilities;
    violations.check(capabilities.len() <= 1, path, "must be at most 1");
    violations.check(
        capabilities.iter().all(|name| name == "ALL"),
        path,
        "must be 'ALL'",
    );
}

/// CPU kinds a complete configuration is built for.
#[must_use]
pub fn architectures(configuration: &ImageConfiguration, offered: &[Architecture]) -> Vec<Architecture> {
    let chosen: Vec<Architecture> = configuration
        .cpu_configurations
        .iter()
        .map(|cpu| cpu.architecture())
        .collect();
    if chosen.is_empty() {
        offered.iter().take(1).copied().collect()
    } else {
        chosen
    }
}

fn environment(variables: &HashMap<String, String>, violations: &mut Violations) {
    let path = "configuration.environment_variables";
    violations.check(
        variables.len() <= limits::ENVIRONMENT_ENTRIES_MAX,
        path,
        "must be at most 100",
    );
    let total: usize = variables.iter().map(|(key, value)| key.len() + value.len()).sum();
    violations.check(
        total <= ENVIRONMENT_BYTES_MAX,
        path,
        "must be at most 65536 bytes in all",
    );
    // Values are secrets: messages name keys only.
    let mut keys: Vec<&String> = variables.keys().collect();
    keys.sort();
    for key in keys {
        let at: String = format!("{path}.{}", key.chars().take(64).collect::<String>());
        let length = key.chars().count();
        let good_key = !key.trim().is_empty()
            && length <= limits::ENVIRONMENT_KEY_MAX
            && !key.contains(['=', '\0'])
            && !key.chars().any(char::is_control);
        violations.check(
            good_key,
            at.clone(),
            "the key must have 1 to 256 characters, without '='",
        );
        let value = &variables[key];
        let good_value = value.chars().count() <= limits::ENVIRONMENT_VALUE_MAX && !value.contains('\0');
        violations.check(
            good_value,
            at.clone(),
            "the value must have at most 4096 characters",
        );
        if key == "AWS_REGION" || key.starts_with("AWS_LAMBDA_MICROVM_") {
            violations.add(at, format!("Environment variable key '{key}' is reserved"));
        }
    }
}

/// True when a hook is to be called.
#[must_use]
pub fn enabled(hook: Option<&Hook>) -> bool {
    hook.is_some_and(|hook| hook.mode() == HookMode::Enabled)
}

fn check_hooks(hooks: &Hooks, violations: &mut Violations) {
    let build = [("ready", &hooks.ready), ("validate", &hooks.validate)];
    let runtime = [
        ("run", &hooks.run),
        ("resume", &hooks.resume),
        ("suspend", &hooks.suspend),
        ("terminate", &hooks.terminate),
    ];
    let any_runtime = runtime.iter().any(|(_, hook)| enabled(hook.as_ref()));
    let any = any_runtime || build.iter().any(|(_, hook)| enabled(hook.as_ref()));
    if any_runtime && !enabled(hooks.ready.as_ref()) {
        violations.add("configuration.hooks.ready", READY_REQUIRED);
    }
    violations.check(
        hooks.port <= 65_535,
        "configuration.hooks.port",
        "must be 1 to 65535",
    );
    violations.check(
        !any || hooks.port != 0,
        "configuration.hooks.port",
        "is required when a hook is enabled",
    );
    for (hooks, longest) in [
        (build.as_slice(), limits::BUILD_HOOK_TIMEOUT_MAX),
        (runtime.as_slice(), limits::RUNTIME_HOOK_TIMEOUT_MAX),
    ] {
        for (name, hook) in hooks {
            let Some(timeout) = hook.as_ref().and_then(|hook| hook.timeout.as_ref()) else {
                continue;
            };
            let good = api::duration(timeout).is_ok_and(|timeout| {
                timeout.subsec_nanos() == 0 && (Duration::from_secs(1)..=longest).contains(&timeout)
            });
            violations.check(
                good,
                format!("configuration.hooks.{name}.timeout"),
                format!("must be 1 to {} whole seconds", longest.as_secs()),
            );
        }
    }
}

/// Checks tags.
pub fn check_tags(tags: &HashMap<String, String>, violations: &mut Violations) {
    violations.check(tags.len() <= limits::TAGS_MAX, "tags", "must be at most 50");
    let allowed = |text: &str| {
        let good = |c: char| c.is_alphabetic() || c.is_numeric() || c == ' ' || "_.:/=+-@".contains(c);
        text.chars().all(good)
    };
    for (key, value) in tags {
        let at = format!("tags.{}", key.chars().take(64).collect::<String>());
        let good_key = !key.is_empty() && key.chars().count() <= TAG_KEY_CHARACTERS_MAX && allowed(key);
        violations.check(
            good_key,
            at.clone(),
            "the key must have 1 to 128 letters, digits, spaces or _.:/=+-@",
        );
        let good_value = value.chars().count() <= TAG_VALUE_CHARACTERS_MAX && allowed(value);
        violations.check(
            good_value,
            at,
            "the value must have at most 256 letters, digits, spaces or _.:/=+-@",
        );
    }
}

fn text(path: &str, value: &str, characters_max: usize, violations: &mut Violations) {
    violations.check(
        value.chars().count() <= characters_max,
        path,
        format!("must be at most {characters_max} characters"),
    );
}

#[cfg(test)]
mod tests;
