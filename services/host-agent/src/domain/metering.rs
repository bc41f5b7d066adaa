//! Running totals of what a microVM used: CPU time of its engine, the baseline
//! memory it holds while it runs, and what it holds beyond that.

use std::time::Duration;

use serde::{Deserialize, Serialize};

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Totals since launch. Survive suspends, wakes and restarts of the agent in
/// the journal; what an unclean end loses is at most one sampling interval.
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
}

/// One look at a running engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// CPU time of the process since it started, in seconds.
    pub cpu_seconds: f64,
    /// Memory that is this microVM's alone, in bytes.
    pub anonymous_bytes: u64,
    /// Time since the sample before (or since the engine started).
    pub interval: Duration,
}

impl Meter {
    /// Counts one sample of a microVM with `baseline_mib` of baseline memory.
    pub fn sample(&mut self, sample: Sample, baseline_mib: u32) {
        // A process's CPU clock never runs backwards; a smaller value would be another process.
        self.cpu_now_seconds = self.cpu_now_seconds.max(sample.cpu_seconds);
        let seconds = sample.interval.as_secs_f64();
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
        let second = |cpu_seconds, anonymous_bytes| Sample {
            cpu_seconds,
            anonymous_bytes,
            interval: Duration::from_secs(4),
        };
        meter.sample(second(1.0, 100 << 20), 512);
        assert_eq!((meter.baseline_gib_seconds, meter.burst_gib_seconds), (2.0, 0.0));
        meter.sample(second(2.0, 1536 << 20), 512);
        assert_eq!((meter.baseline_gib_seconds, meter.burst_gib_seconds), (4.0, 4.0));
        meter.close_engine();
        meter.sample(second(0.5, 0), 512);
        assert!((meter.vcpu_seconds() - 2.5).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn totals_only_rise(samples in prop::collection::vec((0.0f64..1e6, 0u64..1 << 45, 0u64..100_000), 1..50)) {
            let mut meter = Meter::default();
            for (cpu_seconds, anonymous_bytes, ms) in samples {
                let before = meter;
                meter.sample(Sample { cpu_seconds, anonymous_bytes, interval: Duration::from_millis(ms) }, 512);
                prop_assert!(meter.vcpu_seconds() >= before.vcpu_seconds());
                prop_assert!(meter.baseline_gib_seconds >= before.baseline_gib_seconds);
                prop_assert!(meter.burst_gib_seconds >= before.burst_gib_seconds);
            }
        }
    }
}
