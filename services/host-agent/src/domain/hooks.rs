//! Lifecycle hooks: which are on, how long each may take, what they are sent
//! and how their answers are judged.

use std::time::Duration;

use api::common::v1 as common;

use super::error::HostError;

/// Timeout of a build hook that gives none.
const BUILD_HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Timeout of a runtime hook that gives none.
const RUNTIME_HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookName {
    Ready,
    /// On a clone of the new snapshot.
    Validate,
    Run,
    Resume,
    Suspend,
    Terminate,
}

impl HookName {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Validate => "validate",
            Self::Run => "run",
            Self::Resume => "resume",
            Self::Suspend => "suspend",
            Self::Terminate => "terminate",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Validate => "Validate",
            Self::Run => "Run",
            Self::Resume => "Resume",
            Self::Suspend => "Suspend",
            Self::Terminate => "Terminate",
        }
    }
}

/// A hook that is to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    pub name: HookName,
    pub port: u32,
    pub timeout: Duration,
}

/// The hooks of an image that are enabled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks(Vec<Hook>);

impl Hooks {
    pub fn from_wire(hooks: Option<&common::Hooks>) -> Self {
        let Some(hooks) = hooks else { return Self::default() };
        let all = [
            (HookName::Ready, &hooks.ready, BUILD_HOOK_TIMEOUT_DEFAULT),
            (HookName::Validate, &hooks.validate, BUILD_HOOK_TIMEOUT_DEFAULT),
            (HookName::Run, &hooks.run, RUNTIME_HOOK_TIMEOUT_DEFAULT),
            (HookName::Resume, &hooks.resume, RUNTIME_HOOK_TIMEOUT_DEFAULT),
            (HookName::Suspend, &hooks.suspend, RUNTIME_HOOK_TIMEOUT_DEFAULT),
            (HookName::Terminate, &hooks.terminate, RUNTIME_HOOK_TIMEOUT_DEFAULT),
        ];
        let enabled = all.into_iter().filter_map(|(name, hook, default)| {
            let hook = hook.as_ref().filter(|hook| hook.mode() == common::HookMode::Enabled)?;
            let timeout = hook.timeout.as_ref().and_then(|timeout| api::duration(timeout).ok());
            Some(Hook { name, port: hooks.port, timeout: timeout.unwrap_or(default) })
        });
        Self(enabled.collect())
    }

    /// The hook `name`, when it is enabled.
    pub fn enabled(&self, name: HookName) -> Option<Hook> {
        self.0.iter().find(|hook| hook.name == name).copied()
    }
}

/// Body of the run hook. The payload is a string inside the JSON, whatever it holds itself.
pub fn run_body(microvm_id: &str, run_hook_payload: &str) -> String {
    serde_json::json!({ "microvmId": microvm_id, "runHookPayload": run_hook_payload }).to_string()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status; 0 when there was no answer.
    pub http_status: u32,
    /// True when time ran out.
    pub timed_out: bool,
    /// What went wrong when there was no answer.
    pub error: String,
}

/// Judges the answer of a runtime hook: only 200 is success.
pub fn decide(hook: Hook, answer: &Answer) -> Result<(), HostError> {
    if answer.http_status == 200 && !answer.timed_out {
        return Ok(());
    }
    let title = hook.name.title();
    let message = if answer.timed_out {
        format!(
            "{title} lifecycle hook did not answer within {} seconds. Please check your hook endpoint and application logs for more details.",
            hook.timeout.as_secs()
        )
    } else if answer.http_status == 0 {
        format!(
            "{title} lifecycle hook could not be called: {}. Please check your hook endpoint and application logs for more details.",
            answer.error
        )
    } else {
        format!(
            "{title} lifecycle hook returned HTTP status {}. Please check your hook endpoint and application logs for more details.",
            answer.http_status
        )
    };
    Err(HostError::Hook {
        hook: hook.name.as_str(),
        message,
        http_status: answer.http_status,
        timed_out: answer.timed_out,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(mode: common::HookMode, seconds: Option<i64>) -> common::Hooks {
        common::Hooks {
            port: 9000,
            run: Some(common::Hook {
                mode: mode.into(),
                timeout: seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            }),
            ..common::Hooks::default()
        }
    }

    #[test]
    fn only_enabled_hooks_are_called() {
        assert_eq!(Hooks::default().enabled(HookName::Run), None);
        assert_eq!(
            Hooks::from_wire(Some(&hooks(common::HookMode::Disabled, None))).enabled(HookName::Run),
            None
        );
        assert_eq!(
            Hooks::from_wire(Some(&hooks(common::HookMode::Enabled, None))).enabled(HookName::Resume),
            None
        );
        let hook =
            Hooks::from_wire(Some(&hooks(common::HookMode::Enabled, None))).enabled(HookName::Run).unwrap();
        assert_eq!((hook.port, hook.timeout), (9000, Duration::from_secs(1)));
        let hook = Hooks::from_wire(Some(&hooks(common::HookMode::Enabled, Some(20))))
            .enabled(HookName::Run)
            .unwrap();
        assert_eq!(hook.timeout, Duration::from_secs(20));
    }

    #[test]
    fn the_payload_stays_a_string() {
        assert_eq!(
            run_body("microvm-1", r#"{"a":1}"#),
            r#"{"microvmId":"microvm-1","runHookPayload":"{\"a\":1}"}"#
        );
    }

    #[test]
    fn only_200_is_success() {
        let hook = Hook { name: HookName::Run, port: 1, timeout: Duration::from_secs(3) };
        let answer =
            |http_status, timed_out, error: &str| Answer { http_status, timed_out, error: error.to_owned() };
        assert_eq!(decide(hook, &answer(200, false, "")), Ok(()));
        for (answer, sentence) in [
            (
                answer(500, false, ""),
                "Run lifecycle hook returned HTTP status 500. Please check your hook endpoint and application logs for more details.",
            ),
            (
                answer(0, true, ""),
                "Run lifecycle hook did not answer within 3 seconds. Please check your hook endpoint and application logs for more details.",
            ),
            (
                answer(0, false, "connection refused"),
                "Run lifecycle hook could not be called: connection refused. Please check your hook endpoint and application logs for more details.",
            ),
        ] {
            assert_eq!(decide(hook, &answer).unwrap_err().to_string(), sentence);
        }
    }
}
