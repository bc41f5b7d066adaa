//! The rate of this host's time-stamp counter, which the software CPU hands to its guests as it is.
//!
//! A guest without a paravirtual clock measures the rate against the emulated timer chip while it boots. On a busy host
//! that fails, and then the guest hangs for good. Telling it the rate avoids both the hang and the measuring.

#![allow(unsafe_code)] // The counter is read by a CPU instruction.

/// How long to measure: with readings good to a microsecond, the rate is good to some ten parts per million.
#[cfg(target_arch = "x86_64")]
const WINDOW: std::time::Duration = std::time::Duration::from_millis(50);
/// Readings of which the tightest counts; the others may have been interrupted.
#[cfg(target_arch = "x86_64")]
const READINGS: usize = 16;

/// The rate in kHz; `None` where there is no such counter.
#[cfg(target_arch = "x86_64")]
pub(super) async fn measure_khz() -> Option<u64> {
    let (first, begun) = reading();
    tokio::time::sleep(WINDOW).await;
    let (last, ended) = reading();
    let nanoseconds = ended.duration_since(begun).as_nanos();
    u64::try_from(u128::from(last.checked_sub(first)?) * 1_000_000 / nanoseconds).ok().filter(|khz| *khz > 0)
}

/// The rate in kHz; `None` where there is no such counter.
#[cfg(not(target_arch = "x86_64"))]
pub(super) async fn measure_khz() -> Option<u64> {
    None
}

/// The counter and the clock at the same moment, as far as possible.
#[cfg(target_arch = "x86_64")]
fn reading() -> (u64, std::time::Instant) {
    // SAFETY: every x86-64 CPU has the instruction, and it has no other effect than its result.
    let counter = || unsafe { core::arch::x86_64::_rdtsc() };
    let read = |_| {
        let before = counter();
        let now = std::time::Instant::now();
        (counter().saturating_sub(before), before, now)
    };
    let tightest = (0..READINGS).map(read).min_by_key(|(width, ..)| *width);
    let (width, before, now) = tightest.expect("there is at least one reading");
    (before + width / 2, now)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #[tokio::test]
    async fn two_measurements_agree() {
        let (first, second) = (super::measure_khz().await.unwrap(), super::measure_khz().await.unwrap());
        assert!(first.abs_diff(second) < first / 200, "{first} {second}");
        assert!((100_000..20_000_000).contains(&first), "{first}");
    }
}
