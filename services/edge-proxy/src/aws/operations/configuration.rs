//! What an image is built from, in both directions.

use api::common::v1::logging::Destination;
use api::common::v1::{
    Architecture, CpuConfiguration, Hook, HookMode, Hooks, LogGroup, Logging, LoggingDisabled, Resources,
};
use api::image::v1::{CodeArtifact, ImageConfiguration};
use aws_model::Members;
use prost_types::Duration;
use serde_json::{Map, Value, json};

use super::{given, map, members, text, texts};

/// A hook's name in requests, and the member with its timeout.
type HookNames = (&'static str, &'static str);
const READY: HookNames = ("ready", "readyTimeoutInSeconds");
const VALIDATE: HookNames = ("validate", "validateTimeoutInSeconds");
const RUN: HookNames = ("run", "runTimeoutInSeconds");
const RESUME: HookNames = ("resume", "resumeTimeoutInSeconds");
const SUSPEND: HookNames = ("suspend", "suspendTimeoutInSeconds");
const TERMINATE: HookNames = ("terminate", "terminateTimeoutInSeconds");

/// Reads a configuration. `arm_64_is_own` leaves `ARM_64` out, so that image-builder takes the architecture of the fleet.
pub(super) fn read(request: Members<'_>, arm_64_is_own: bool) -> ImageConfiguration {
    let cpus = request.structures("cpuConfigurations").map(|cpu| architecture(cpu.text("architecture")));
    let cpus = cpus.filter(|cpu| !(arm_64_is_own && *cpu == Architecture::Arm64));
    let cpu = |architecture: Architecture| CpuConfiguration { architecture: architecture.into() };
    let resources = |resources: Members<'_>| Resources {
        minimum_memory_mib: resources.number("minimumMemoryInMiB").unwrap_or(0),
    };
    let artifact = |artifact: Members<'_>| CodeArtifact { uri: artifact.string("uri") };
    ImageConfiguration {
        code_artifact: request.structure("codeArtifact").map(artifact),
        base_image_arn: request.string("baseImageArn"),
        base_image_version: request.string("baseImageVersion"),
        build_role_arn: request.string("buildRoleArn"),
        description: request.string("description"),
        resources: request.structures("resources").map(resources).next(),
        cpu_configurations: cpus.map(cpu).collect(),
        additional_os_capabilities: request.strings("additionalOsCapabilities"),
        environment_variables: request.map("environmentVariables"),
        egress_network_connectors: request.strings("egressNetworkConnectors"),
        hooks: request.structure("hooks").map(hooks),
        logging: request.structure("logging").map(logging),
        kms_key_identifier: request.string("kmsKeyIdentifier"),
        // Not a matter of this API.
        end_connections_at_suspend: false,
    }
}

pub(super) fn logging(logging: Members<'_>) -> Logging {
    let group = logging.structure("cloudWatch").map(|group| {
        Destination::CloudWatch(LogGroup {
            log_group: group.string("logGroup"),
            log_stream: group.string("logStream"),
        })
    });
    let disabled = logging.structure("disabled").map(|_| Destination::Disabled(LoggingDisabled {}));
    Logging { destination: group.or(disabled) }
}

fn hooks(hooks: Members<'_>) -> Hooks {
    let build = hooks.structure("microvmImageHooks").unwrap_or_default();
    let runtime = hooks.structure("microvmHooks").unwrap_or_default();
    Hooks {
        port: hooks.number("port").unwrap_or(0),
        ready: hook(build, READY),
        validate: hook(build, VALIDATE),
        run: hook(runtime, RUN),
        resume: hook(runtime, RESUME),
        suspend: hook(runtime, SUSPEND),
        terminate: hook(runtime, TERMINATE),
    }
}

fn hook(group: Members<'_>, (name, timeout): HookNames) -> Option<Hook> {
    let mode = match group.text(name) {
        Some("ENABLED") => HookMode::Enabled,
        Some("DISABLED") => HookMode::Disabled,
        _ => HookMode::Unspecified,
    };
    let timeout = group.integer(timeout).map(|seconds| Duration { seconds, nanos: 0 });
    (mode != HookMode::Unspecified || timeout.is_some()).then_some(Hook { mode: mode.into(), timeout })
}

fn architecture(name: Option<&str>) -> Architecture {
    match name {
        Some("ARM_64") => Architecture::Arm64,
        Some("X86_64") => Architecture::X8664,
        _ => Architecture::Unspecified,
    }
}

/// An architecture's name on the wire; null when it is not known.
pub(super) fn architecture_name(architecture: Architecture) -> Value {
    match architecture {
        Architecture::Unspecified => Value::Null,
        Architecture::Arm64 => "ARM_64".into(),
        Architecture::X8664 => "X86_64".into(),
    }
}

/// The members of an answer that tell a configuration.
pub(super) fn write(configuration: ImageConfiguration) -> Map<String, Value> {
    let cpu = |cpu: &CpuConfiguration| json!({"architecture": architecture_name(cpu.architecture())});
    let cpus = &configuration.cpu_configurations;
    let environment = configuration.environment_variables;
    let resources = configuration.resources;
    let artifact = configuration.code_artifact;
    members([
        ("additionalOsCapabilities", texts(configuration.additional_os_capabilities)),
        ("baseImageArn", text(configuration.base_image_arn)),
        ("baseImageVersion", text(configuration.base_image_version)),
        ("buildRoleArn", text(configuration.build_role_arn)),
        ("codeArtifact", artifact.map_or(Value::Null, |artifact| json!({"uri": artifact.uri}))),
        ("cpuConfigurations", if cpus.is_empty() { Value::Null } else { cpus.iter().map(cpu).collect() }),
        ("description", text(configuration.description)),
        ("egressNetworkConnectors", texts(configuration.egress_network_connectors)),
        ("environmentVariables", if environment.is_empty() { Value::Null } else { map(environment) }),
        ("kmsKeyIdentifier", text(configuration.kms_key_identifier)),
        ("hooks", configuration.hooks.map_or(Value::Null, write_hooks)),
        ("logging", configuration.logging.map_or(Value::Null, write_logging)),
        (
            "resources",
            resources.map_or(
                Value::Null,
                |resources| json!([{"minimumMemoryInMiB": resources.minimum_memory_mib}]),
            ),
        ),
    ])
}

fn write_logging(logging: Logging) -> Value {
    match logging.destination {
        None => Value::Null,
        Some(Destination::Disabled(LoggingDisabled {})) => json!({"disabled": {}}),
        Some(Destination::CloudWatch(group)) => {
            let group = given([("logGroup", text(group.log_group)), ("logStream", text(group.log_stream))]);
            json!({"cloudWatch": group})
        }
    }
}

fn write_hooks(hooks: Hooks) -> Value {
    let port = if hooks.port == 0 { Value::Null } else { hooks.port.into() };
    let build = [(READY, hooks.ready), (VALIDATE, hooks.validate)];
    let runtime =
        [(RUN, hooks.run), (RESUME, hooks.resume), (SUSPEND, hooks.suspend), (TERMINATE, hooks.terminate)];
    given([
        ("port", port),
        ("microvmHooks", write_group(&runtime)),
        ("microvmImageHooks", write_group(&build)),
    ])
}

/// A group of hooks; null when none of them is given.
fn write_group(hooks: &[(HookNames, Option<Hook>)]) -> Value {
    let mut group = Map::new();
    for ((name, timeout), hook) in hooks {
        let Some(hook) = hook else { continue };
        let mode = match hook.mode() {
            HookMode::Unspecified => Value::Null,
            HookMode::Enabled => "ENABLED".into(),
            HookMode::Disabled => "DISABLED".into(),
        };
        let seconds = hook.timeout.map_or(Value::Null, |given| given.seconds.into());
        let members = [(*name, mode), (*timeout, seconds)].into_iter().filter(|(_, value)| !value.is_null());
        group.extend(members.map(|(name, value)| (name.to_owned(), value)));
    }
    if group.is_empty() { Value::Null } else { Value::Object(group) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_survives_both_ways() {
        let all = json!({
            "additionalOsCapabilities": ["ALL"],
            "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:debian-12",
            "baseImageVersion": "1",
            "buildRoleArn": "arn:aws:iam::000000000000:role/build",
            "codeArtifact": {"uri": "s3://bucket/code.zip"},
            "cpuConfigurations": [{"architecture": "X86_64"}, {"architecture": "ARM_64"}],
            "description": "all of it",
            "egressNetworkConnectors": ["arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1"],
            "environmentVariables": {"A": "1", "B": ""},
            "hooks": {
                "port": 9000,
                "microvmHooks": {
                    "run": "ENABLED", "runTimeoutInSeconds": 10,
                    "resume": "DISABLED",
                    "suspendTimeoutInSeconds": 5,
                    "terminate": "ENABLED", "terminateTimeoutInSeconds": 60,
                },
                "microvmImageHooks": {"ready": "ENABLED", "readyTimeoutInSeconds": 3600},
            },
            "kmsKeyIdentifier": "alias/images",
            "logging": {"cloudWatch": {"logGroup": "group", "logStream": "stream"}},
            "resources": [{"minimumMemoryInMiB": 512}],
        });
        let Value::Object(request) = all.clone() else { panic!("an object was written above") };
        assert_eq!(Value::Object(write(read(Members::from(&request), false))), all);
    }

    #[test]
    fn arm_64_is_left_out_where_it_means_the_fleets_own() {
        let request = |architectures: &[&str]| {
            let given: Vec<Value> = architectures.iter().map(|name| json!({"architecture": name})).collect();
            let Value::Object(request) = json!({"cpuConfigurations": given}) else {
                panic!("an object was written above")
            };
            read(Members::from(&request), true).cpu_configurations.len()
        };
        for (architectures, left) in [(&["ARM_64"][..], 0), (&["X86_64"], 1), (&["ARM_64", "X86_64"], 1)] {
            assert_eq!(request(architectures), left, "{architectures:?}");
        }
    }

    #[test]
    fn what_is_not_given_is_null() {
        let nothing = write(read(Members::default(), false));
        assert!(nothing.values().all(Value::is_null), "{nothing:?}");
        assert_eq!(nothing.len(), 13);
    }

    #[test]
    fn disabled_logging_is_a_structure() {
        let Value::Object(request) = json!({"logging": {"disabled": {}}, "hooks": {}}) else {
            panic!("an object was written above")
        };
        let written = write(read(Members::from(&request), false));
        assert_eq!(written["logging"], json!({"disabled": {}}));
        assert_eq!(written["hooks"], json!({}));
    }
}
