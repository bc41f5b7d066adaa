//! Checks what a caller chose about a version, and fills in what the caller
//! left to us. Everything that is wrong is collected, with protobuf field paths.

use std::collections::HashMap;

use api::common::v1::{Architecture, Resources, logging::Destination};
use api::image::v1::ImageConfiguration;
use model::{KmsKeyIdentifier, MemoryClass, RoleArn, Violations, limits};

use crate::domain::base_images::{Aliases, Bases};

mod base;
mod connector;
mod environment;
mod hooks;

pub use hooks::enabled;

/// Longest description and names of logs, in characters.
const DESCRIPTION_CHARACTERS_MAX: usize = 2048;
const LOG_NAME_CHARACTERS_MAX: usize = 512;
const CPU_CONFIGURATIONS_MAX: usize = 2;
/// Key limits of S3.
const BUCKET_LENGTH: std::ops::RangeInclusive<usize> = 3..=63;
const KEY_BYTES_MAX: usize = 1024;

#[derive(Debug, Clone)]
pub struct Offer<'a> {
    pub bases: &'a Bases,
    pub base_aliases: &'a Aliases,
    pub region: &'a str,
    /// Base of a request that names none.
    pub default_base: &'a str,
    pub architectures: &'a [Architecture],
    /// Memory of a request that names none, in MiB.
    pub memory_default_mib: u32,
    /// Buckets of the fleet's own, from which nothing is built: what they hold is others'.
    pub own_buckets: [&'a str; 2],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Uri {
    pub bucket: String,
    pub key: String,
}

impl S3Uri {
    pub fn parse(uri: &str) -> Option<Self> {
        let (bucket, key) = uri.strip_prefix("s3://")?.split_once('/')?;
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
        let good = BUCKET_LENGTH.contains(&bucket.len())
            && bucket.chars().all(allowed)
            && !key.is_empty()
            && key.len() <= KEY_BYTES_MAX
            && !key.chars().any(char::is_control);
        good.then(|| Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

/// Checks a configuration and returns it complete: base and its version, memory and connector filled in.
pub fn complete(
    configuration: Option<ImageConfiguration>,
    offer: &Offer<'_>,
    violations: &mut Violations,
) -> ImageConfiguration {
    let mut given = configuration.unwrap_or_default();
    let uri = given.code_artifact.as_ref().map_or("", |artifact| artifact.uri.as_str());
    let place = S3Uri::parse(uri);
    violations.check(place.is_some(), "codeArtifact.uri", "must have the form 's3://bucket/key'");
    if let Some(S3Uri { bucket, .. }) = place {
        let is_own = offer.own_buckets.contains(&bucket.as_str());
        violations.check(
            !is_own,
            "codeArtifact.uri",
            format!("must not name the fleet's own bucket '{bucket}'"),
        );
    }
    base::complete(&mut given, offer, violations);
    sizes(&mut given, offer, violations);
    environment::check(&given.environment_variables, violations);
    if let Some(hooks) = &given.hooks {
        hooks::check(hooks, violations);
    }
    if !given.build_role_arn.is_empty() {
        violations.keep("buildRoleArn", given.build_role_arn.parse::<RoleArn>());
    }
    if !given.kms_key_identifier.is_empty() {
        violations.keep("kmsKeyIdentifier", given.kms_key_identifier.parse::<KmsKeyIdentifier>());
    }
    text("description", &given.description, DESCRIPTION_CHARACTERS_MAX, violations);
    connector::complete(&mut given, offer, violations);
    if let Some(Destination::CloudWatch(group)) =
        given.logging.as_ref().and_then(|to| to.destination.as_ref())
    {
        let path = "logging.cloudWatch";
        text(&format!("{path}.logGroup"), &group.log_group, LOG_NAME_CHARACTERS_MAX, violations);
        text(&format!("{path}.logStream"), &group.log_stream, LOG_NAME_CHARACTERS_MAX, violations);
        violations.check(
            !group.log_stream.contains([':', '*']),
            format!("{path}.logStream"),
            "must not contain ':' or '*'",
        );
    }
    given
}

fn sizes(given: &mut ImageConfiguration, offer: &Offer<'_>, violations: &mut Violations) {
    let memory = given.resources.get_or_insert(Resources { minimum_memory_mib: offer.memory_default_mib });
    violations.check(
        MemoryClass::of(memory.minimum_memory_mib).is_some(),
        "resources[0].minimumMemoryInMiB",
        "must be one of 512, 1024, 2048, 4096, 8192",
    );
    let path = "cpuConfigurations";
    let cpus = &given.cpu_configurations;
    violations.check(cpus.len() <= CPU_CONFIGURATIONS_MAX, path, "must be at most 2");
    for (index, cpu) in cpus.iter().enumerate() {
        if !offer.architectures.contains(&cpu.architecture()) {
            let offered: Vec<&str> = offer.architectures.iter().map(|one| short_name(*one)).collect();
            violations.add(
                format!("{path}[{index}].architecture"),
                format!(
                    "No host of this fleet has the CPU architecture {}; it has {}. Leave cpuConfigurations out to build for \
                     what it has.",
                    short_name(cpu.architecture()),
                    offered.join(" and "),
                ),
            );
        }
        let repeated = cpus[..index].contains(cpu);
        violations.check(!repeated, format!("{path}[{index}].architecture"), "is named twice");
    }
    let path = "additionalOsCapabilities";
    let capabilities = &given.additional_os_capabilities;
    violations.check(capabilities.len() <= 1, path, "must be at most 1");
    violations.check(capabilities.iter().all(|name| name == "ALL"), path, "must be 'ALL'");
}

fn short_name(architecture: Architecture) -> &'static str {
    architecture.as_str_name().trim_start_matches("ARCHITECTURE_")
}

/// CPU kinds a complete configuration is built for.
pub fn architectures(configuration: &ImageConfiguration, offered: &[Architecture]) -> Vec<Architecture> {
    let chosen: Vec<Architecture> =
        configuration.cpu_configurations.iter().map(|cpu| cpu.architecture()).collect();
    if chosen.is_empty() { offered.iter().take(1).copied().collect() } else { chosen }
}

pub fn check_tags(tags: &HashMap<String, String>, violations: &mut Violations) {
    violations.check(tags.len() <= limits::TAGS_MAX, "tags", "must be at most 50");
    for (key, value) in tags {
        let at = format!("tags.{}", key.chars().take(64).collect::<String>());
        check_tag_key(&at, key, violations);
        let good_value = value.chars().count() <= limits::TAG_VALUE_MAX && is_tag_text(value);
        violations.check(
            good_value,
            at,
            "the value must have at most 256 letters, digits, spaces or _.:/=+-@",
        );
    }
}

pub fn check_tag_key(path: &str, key: &str, violations: &mut Violations) {
    let good = !key.is_empty() && key.chars().count() <= limits::TAG_KEY_MAX && is_tag_text(key);
    violations.check(good, path, "the key must have 1 to 128 letters, digits, spaces or _.:/=+-@");
}

fn is_tag_text(text: &str) -> bool {
    // Separators are all white space that does not control anything.
    let separates = |c: char| c.is_whitespace() && !c.is_control();
    text.chars().all(|c| c.is_alphabetic() || c.is_numeric() || separates(c) || "_.:/=+-@".contains(c))
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
