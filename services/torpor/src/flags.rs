//! The flag behind every field that a service may find fault with, so that an error
//! names what was typed. One table a command.

/// Fields of a request and the flags, or arguments, that fill them.
pub type Flags = &'static [(&'static str, &'static str)];

pub const RUN: Flags = &[
    ("imageIdentifier", "IMAGE"),
    ("imageVersion", "--version"),
    ("idlePolicy.maxIdleDurationSeconds", "--idle"),
    ("idlePolicy.suspendedDurationSeconds", "--suspended"),
    ("idlePolicy.awakeWhile.cpuPercent", "--awake-while"),
    ("maximumDurationInSeconds", "--max-duration"),
    ("checkpointInterval", "--checkpoint"),
    ("executionRoleArn", "--execution-role"),
    ("runHookPayload", "--payload"),
    ("ingressNetworkConnectors", "--ingress"),
    ("egressNetworkConnectors", "--egress"),
    ("clientToken", "--client-token"),
    ("expirationInMinutes", "--token-ttl"),
];

pub const TOKEN: Flags = &[
    ("expirationInMinutes", "--ttl"),
    ("allowedPorts", "--port"),
    ("allowedPaths", "--path"),
    ("allowedMethods", "--method"),
];

pub const OPEN: Flags = &[("port", "--port"), ("path", "--path"), ("sessionDuration", "--for")];

pub const AWAKE: Flags = &[("duration", "--for")];

pub const LIST: Flags = &[("imageIdentifier", "--image"), ("imageVersion", "--version")];

pub const IMAGE: Flags = &[
    ("name", "NAME"),
    ("imageIdentifier", "NAME"),
    ("codeArtifact.uri", "--artifact"),
    ("baseImageArn", "--base"),
    ("resources[0].minimumMemoryInMiB", "--memory"),
    ("environmentVariables", "--env"),
    ("description", "--description"),
    ("tags", "--tag"),
    ("additionalOsCapabilities", "--all-capabilities"),
    ("hooks.port", "--hook-port"),
    ("hooks.microvmImageHooks.ready", "--ready-hook"),
    ("hooks.microvmImageHooks.validate", "--validate-hook"),
    ("hooks.microvmHooks.run", "--run-hook"),
    ("hooks.microvmHooks.resume", "--resume-hook"),
    ("hooks.microvmHooks.suspend", "--suspend-hook"),
    ("hooks.microvmHooks.terminate", "--terminate-hook"),
    ("clientToken", "--client-token"),
];

pub const KEY: Flags =
    &[("description", "--description"), ("policy", "--policy"), ("expireTime", "--expires")];

pub const DOMAIN: Flags = &[
    ("name", "NAME"),
    ("microvmIdentifier", "--microvm"),
    ("imageIdentifier", "--image"),
    ("certificateChain", "--cert"),
    ("privateKey", "--key"),
];

/// What a user typed for a field: its flag, with the rest of the path where the field
/// has parts ("tags.a" is "--tag a"). The field itself when no flag fills it.
pub fn typed(flags: Flags, field: &str) -> String {
    let found = flags.iter().find_map(|(name, flag)| {
        let rest = field.strip_prefix(name)?;
        match rest.chars().next() {
            None => Some((*flag).to_owned()),
            Some('.') => Some(format!("{flag} {}", &rest[1..])),
            // Which of several it is, the value says; a time of a hook stands behind its flag.
            Some('[') => Some((*flag).to_owned()),
            Some(_) => (rest == "TimeoutInSeconds").then(|| (*flag).to_owned()),
        }
    });
    found.unwrap_or_else(|| field.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn fields_are_named_as_they_were_typed() {
        for (flags, field, typed_as) in [
            (RUN, "idlePolicy.maxIdleDurationSeconds", "--idle"),
            (RUN, "egressNetworkConnectors[1]", "--egress"),
            (TOKEN, "expirationInMinutes", "--ttl"),
            (IMAGE, "tags.a b", "--tag a b"),
            (IMAGE, "hooks.microvmHooks.runTimeoutInSeconds", "--run-hook"),
            (IMAGE, "hooks.microvmImageHooks.ready", "--ready-hook"),
            (IMAGE, "resources[0].minimumMemoryInMiB", "--memory"),
            (KEY, "policy.statements[0].actions", "--policy statements[0].actions"),
            (IMAGE, "names", "names"),
            (RUN, "nextToken", "nextToken"),
        ] {
            assert_eq!(typed(flags, field), typed_as, "{field}");
        }
    }

    #[test]
    fn every_flag_is_one_of_its_command() {
        for (path, flags) in [
            (&["run"][..], RUN),
            (&["token"], TOKEN),
            (&["awake"], AWAKE),
            (&["open"], OPEN),
            (&["list"], LIST),
            (&["image", "create"], IMAGE),
            (&["image", "update"], IMAGE),
            (&["key", "create"], KEY),
            (&["domain", "add"], DOMAIN),
        ] {
            let mut command = crate::cli::Cli::command();
            for name in path {
                command = command.find_subcommand(name).unwrap().clone();
            }
            for (_, flag) in flags {
                let known = command.get_arguments().any(|argument| match flag.strip_prefix("--") {
                    Some(long) => argument.get_long() == Some(long),
                    None => argument.get_id().as_str().to_uppercase() == *flag,
                });
                assert!(known, "{path:?} has no {flag}");
            }
        }
    }
}
