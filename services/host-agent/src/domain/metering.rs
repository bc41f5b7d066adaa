//! Running totals of what a microVM used: CPU time of its engine, the baseline
//! memory it holds while it runs, and what it holds beyond that.

use std::time::Duration;

use serde::{Deserialize, Serialize};

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Totals of one placement. They survive suspends, wakes and restarts of the agent in the journal. It is written with every
/// change, every few samples and when the agent stops. When the agent crashes, the engine's CPU time is read from the engine that
/// ran on, and the baseline is counted for the time between; lost is what was held beyond it since the last write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meter {
    /// CPU time of earlier engine processes, in seconds.
    pub cpu_before_seconds: f64,
    /// CPU time of the present engine process, in seconds.
    pub cpu_now_seconds: f64,
    /// Baseline memory held, in GiB times seconds.
    pub baseline_gib_seconds: f64,
    /// Memory held beyond the baseline, in GiB times seconds.
    pub burst_gib_seconds: f64,
    /// Snapshot bytes read to launch or wake.
    pub snapshot_bytes_read: u64,
    /// Snapshot bytes written by suspends.
    pub snapshot_bytes_written: u64,
    /// Bytes through the tunnel in both directions.
    pub endpoint_bytes: u64,
    /// Up to when the memory is counted, in milliseconds of the machine's uptime; 0 when that is not known.
    #[serde(default)]
    pub counted_to_ms: u64,
}

/// One look at a running engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// CPU time of the process since it started, in seconds.
    pub cpu_seconds: f64,
    /// Memory that is this microVM's alone, in bytes.
    pub anonymous_bytes: u64,
}

impl Meter {
    /// An engine runs from now on.
    pub fn begin_engine(&mut self, uptime_ms: u64) {
        self.counted_to_ms = uptime_ms;
    }

    /// Another agent takes the engine over. It held its baseline while nobody looked, unless it stood still.
    pub fn adopt_engine(&mut self, uptime_ms: u64, ran_on: bool, baseline_mib: u32) {
        if ran_on && self.counted_to_ms > 0 {
            self.sample(Sample { cpu_seconds: 0.0, anonymous_bytes: 0 }, uptime_ms, baseline_mib);
        }
        self.counted_to_ms = uptime_ms;
    }

    /// The microVM was placed here anew: what it used before is in the scheduler's record, and counts there.
    pub fn begin_placement(&mut self) {
        *self = Self {
            // The engine's CPU time so far belongs to the placement before.
            cpu_before_seconds: -self.cpu_now_seconds,
            cpu_now_seconds: self.cpu_now_seconds,
            counted_to_ms: self.counted_to_ms,
            ..Self::default()
        };
    }

    /// Counts a microVM with `baseline_mib` of baseline memory from the sample before to now.
    pub fn sample(&mut self, sample: Sample, uptime_ms: u64, baseline_mib: u32) {
        // A process's CPU clock never runs backwards; a smaller value would be another process.
        self.cpu_now_seconds = self.cpu_now_seconds.max(sample.cpu_seconds);
        let interval = Duration::from_millis(uptime_ms.saturating_sub(self.counted_to_ms));
        self.counted_to_ms = self.counted_to_ms.max(uptime_ms);
        let seconds = interval.as_secs_f64();
        let baseline_bytes = f64::from(baseline_mib) * MIB;
        #[allow(clippy::cast_precision_loss)] // below 2^53 bytes
        let burst_bytes = (sample.anonymous_bytes as f64 - baseline_bytes).max(0.0);
        self.baseline_gib_seconds += baseline_bytes / GIB * seconds;
        self.burst_gib_seconds += burst_bytes / GIB * seconds;
    }

    /// The engine process has ended; the next one starts from zero.
    pub fn close_engine(&mut self) {
        self.cpu_before_seconds += self.cpu_now_seconds;
        self.cpu_now_seconds = 0.0;
    }

    /// CPU time in all, in seconds.
    pub fn vcpu_seconds(&self) -> f64 {
        self.cpu_before_seconds + self.cpu_now_seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn baseline_and_burst() {
        let mut meter = Meter::default();
        meter.begin_engine(1_000);
        let sample = |cpu_seconds, anonymous_bytes| Sample { cpu_seconds, anonymous_bytes };
        meter.sample(sample(1.0, 100 << 20), 5_000, 512);
        assert_eq!((meter.baseline_gib_seconds, meter.burst_gib_seconds), (2.0, 0.0));
        meter.sample(sample(2.0, 1536 << 20), 9_000, 512);
        assert_eq!((meter.baseline_gib_seconds, meter.burst_gib_seconds), (4.0, 4.0));
        meter.close_engine();
        meter.begin_engine(109_000);
        meter.sample(sample(0.5, 0), 109_000, 512);
        assert!((meter.vcpu_seconds() - 2.5).abs() < 1e-9);
        assert_eq!(meter.baseline_gib_seconds, 4.0, "it slept");
        meter.begin_placement();
        meter.sample(sample(0.75, 0), 111_000, 512);
        assert!((meter.vcpu_seconds() - 0.25).abs() < 1e-9);
        assert_eq!(meter.baseline_gib_seconds, 1.0, "of the new placement");
    }

    #[test]
    fn what_is_adopted_held_its_baseline_meanwhile() {
        for (counted_to_ms, ran_on, gib_seconds) in [
            (10_000, true, 5.0),
            (10_000, false, 0.0),
            // A journal of an agent that did not note the time; a clock of another boot.
            (0, true, 0.0),
            (90_000, true, 0.0),
        ] {
            let mut meter = Meter { counted_to_ms, ..Meter::default() };
            meter.adopt_engine(20_000, ran_on, 512);
            assert_eq!(
                (meter.baseline_gib_seconds, meter.counted_to_ms),
                (gib_seconds, 20_000),
                "{counted_to_ms}"
            );
        }
    }

    proptest! {
        #[test]
        fn totals_only_rise(samples in prop::collection::vec((0.0f64..1e6, 0u64..1 << 45, 0u64..100_000), 1..50)) {
            let mut meter = Meter::default();
            for (cpu_seconds, anonymous_bytes, uptime_ms) in samples {
                let before = meter;
                meter.sample(Sample { cpu_seconds, anonymous_bytes }, uptime_ms, 512);
                prop_assert!(meter.vcpu_seconds() >= before.vcpu_seconds());
                prop_assert!(meter.baseline_gib_seconds >= before.baseline_gib_seconds);
                prop_assert!(meter.burst_gib_seconds >= before.burst_gib_seconds);
            }
        }
    }
}
