//! Lifecycle hooks: which may stand together, their port, their windows.

use std::time::Duration;

use api::common::v1::{Hook, HookMode, Hooks};
use model::{Violations, limits};

const READY_REQUIRED: &str = "The ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle \
                              hook (run, resume, suspend, or terminate) is enabled.";
const PORT_REQUIRED: &str = "The port of the MicroVM image hooks is required when hooks are given.";

/// True when a hook is to be called.
pub fn enabled(hook: Option<&Hook>) -> bool {
    hook.is_some_and(|hook| hook.mode() == HookMode::Enabled)
}

pub(super) fn check(hooks: &Hooks, violations: &mut Violations) {
    let build = [("ready", &hooks.ready), ("validate", &hooks.validate)];
    let runtime = [
        ("run", &hooks.run),
        ("resume", &hooks.resume),
        ("suspend", &hooks.suspend),
        ("terminate", &hooks.terminate),
    ];
    let any_runtime = runtime.iter().any(|(_, hook)| enabled(hook.as_ref()));
    if any_runtime && !enabled(hooks.ready.as_ref()) {
        violations.add("hooks.microvmImageHooks.ready", READY_REQUIRED);
    }
    violations.check(hooks.port <= 65_535, "hooks.port", "must be 1 to 65535");
    violations.check(hooks.port != 0, "hooks.port", PORT_REQUIRED);
    for (group, hooks, longest) in [
        ("microvmImageHooks", build.as_slice(), limits::BUILD_HOOK_TIMEOUT_MAX),
        ("microvmHooks", runtime.as_slice(), limits::RUNTIME_HOOK_TIMEOUT_MAX),
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
                format!("hooks.{group}.{name}TimeoutInSeconds"),
                format!("must be 1 to {} whole seconds", longest.as_secs()),
            );
        }
    }
}
