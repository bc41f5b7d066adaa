//! Arithmetic of what microVMs used: whoever adds totals up adds all of them.

use crate::common::v1::Metering;

impl Metering {
    fn combine(
        self,
        other: Self,
        seconds: impl Fn(f64, f64) -> f64,
        bytes: impl Fn(u64, u64) -> u64,
    ) -> Self {
        Self {
            vcpu_seconds: seconds(self.vcpu_seconds, other.vcpu_seconds),
            baseline_gib_seconds: seconds(self.baseline_gib_seconds, other.baseline_gib_seconds),
            burst_gib_seconds: seconds(self.burst_gib_seconds, other.burst_gib_seconds),
            snapshot_bytes_read: bytes(self.snapshot_bytes_read, other.snapshot_bytes_read),
            snapshot_bytes_written: bytes(self.snapshot_bytes_written, other.snapshot_bytes_written),
            endpoint_bytes: bytes(self.endpoint_bytes, other.endpoint_bytes),
        }
    }

    /// The sum of each total.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.combine(other, |one, other| one + other, u64::saturating_add)
    }

    /// The larger of each total.
    #[must_use]
    pub fn largest(self, other: Self) -> Self {
        self.combine(other, f64::max, u64::max)
    }

    /// What each total has beyond the other's; never less than nothing.
    #[must_use]
    pub fn beyond(self, other: Self) -> Self {
        self.combine(other, |one, other| (one - other).max(0.0), u64::saturating_sub)
    }
}
