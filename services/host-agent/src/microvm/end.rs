//! The end of a microVM, whoever asks for it: hook, engine, files, and a
//! tombstone so that the end is reported until it is known.

use super::EndOrder;
use super::core::Core;
use super::guest::call_hook;
use crate::adapters::files;
use crate::adapters::journal::Tombstone;
use crate::domain::hooks::HookName;
use crate::domain::local_state::Event;
use crate::failpoint;

const PANIC_CHARACTERS_MAX: usize = 200;

impl Core {
    /// Ends the microVM and releases everything. Never fails: what cannot be
    /// removed is logged and removed by the next start.
    pub async fn end(&mut self, order: &EndOrder, call_hook: bool) -> Option<Tombstone> {
        let _room = self.host.disk.claim(0).await;
        self.enter(Event::EndBegan, &order.reason);
        self.journal.discard = order.discard;
        self.save_settled();
        self.publish();
        failpoint::hit("end-begun");
        if let Some(upload) = self.upload.take() {
            upload.abort();
        }
        if let Some(live) = &self.live
            && call_hook
            && !order.discard
            && live.out_of_space.is_none()
        {
            self.terminate_hook(live).await;
        }
        // The hook's time is the microVM's as well.
        self.sample();
        if let Some(live) = self.live.take() {
            self.release(live).await;
        }
        self.log.append(format!("terminated: {}", order.reason));
        failpoint::hit("end-released");
        let tombstone = self.record_end(order);
        self.enter(Event::IsGone, &order.reason);
        self.publish();
        self.host.metrics.ended();
        tombstone
    }

    async fn terminate_hook(&self, live: &super::core::Live) {
        let Some(hook) = self.spec.hooks.enabled(HookName::Terminate) else {
            return;
        };
        let called = match live.link() {
            Ok(link) => call_hook(&link, hook, String::new()).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = called {
            tracing::warn!(microvm = %self.id, error = %failure, "the terminate hook failed; the microVM ends anyway");
            self.log.append(failure.to_string());
        }
    }

    /// Tombstone first, then the directory: dying in between leaves both, and the next start, which finds the journal TERMINATING,
    /// comes here again. What S3 has is not touched: see `microvms::ended`.
    pub fn record_end(&self, order: &EndOrder) -> Option<Tombstone> {
        let mut kept = None;
        if !order.discard {
            let tombstone = Tombstone {
                generation: self.journal.generation,
                reason: order.reason.clone(),
                ended_ms: self.host.now_ms(),
                observation: self.journal.observation + 1,
                meter: self.journal.meter,
            };
            let place = self.host.data.ended().join(self.id.as_str());
            let buried = files::make_directory(&place).and_then(|()| tombstone.write(&place));
            if let Err(error) = buried {
                tracing::error!(microvm = %self.id, %error, "the end is reported only while this process lives");
            }
            let _ = std::fs::rename(self.files.logs(), place.join("logs"));
            kept = Some(tombstone);
        }
        files::discard(self.files.directory());
        kept
    }
}

/// Why a guest ended by itself, as a sentence.
pub fn exit_sentence(reason: &vmm::ExitReason) -> String {
    match reason {
        vmm::ExitReason::GuestShutdown => "The guest powered off.".to_owned(),
        vmm::ExitReason::GuestReset => "The guest restarted itself, which ends a microVM.".to_owned(),
        vmm::ExitReason::GuestPanic(line) => format!("The guest kernel panicked: {}", panic_message(line)),
        vmm::ExitReason::Killed(signal) => format!("The engine process was killed (signal {signal})."),
        vmm::ExitReason::Failed { code: Some(code), .. } => {
            format!("The engine process ended with status {code}.")
        }
        vmm::ExitReason::Failed { code: None, .. } => "The engine process ended.".to_owned(),
    }
}

/// The kernel's own words in the line it gave up with. The guest wrote them, so they are cut and cleaned.
fn panic_message(line: &str) -> String {
    const MARK: &str = "Kernel panic - not syncing: ";
    let words = line.find(MARK).map_or(line, |start| &line[start + MARK.len()..]);
    words.trim().chars().filter(|c| !c.is_control()).take(PANIC_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_a_sentence() {
        let failed = |code| vmm::ExitReason::Failed { code, message: "oops".to_owned() };
        for (reason, sentence) in [
            (vmm::ExitReason::GuestShutdown, "The guest powered off."),
            (
                vmm::ExitReason::GuestPanic(
                    "[ 2.0] Kernel panic - not syncing: sysrq triggered crash\r".to_owned(),
                ),
                "The guest kernel panicked: sysrq triggered crash",
            ),
            (vmm::ExitReason::Killed(9), "The engine process was killed (signal 9)."),
            (failed(Some(1)), "The engine process ended with status 1."),
            (failed(None), "The engine process ended."),
        ] {
            assert_eq!(exit_sentence(&reason), sentence);
        }
        assert_eq!(panic_message(&"x".repeat(5000)).len(), PANIC_CHARACTERS_MAX);
    }
}
