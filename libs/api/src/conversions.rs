//! Time on the wire and in memory. Out-of-range values are errors, never clamps.

use std::time::{Duration, SystemTime};

/// A time or duration that does not fit.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error("{0} is out of range")]
pub struct ConversionError(&'static str);

/// Protobuf duration to a non-negative [`Duration`].
///
/// # Errors
/// When it is negative or its nanoseconds are out of range.
pub fn duration(value: &prost_types::Duration) -> Result<Duration, ConversionError> {
    let seconds = u64::try_from(value.seconds).map_err(|_| ConversionError("duration"))?;
    let nanos = u32::try_from(value.nanos).map_err(|_| ConversionError("duration"))?;
    if nanos >= 1_000_000_000 {
        return Err(ConversionError("duration"));
    }
    Ok(Duration::new(seconds, nanos))
}

/// [`Duration`] to protobuf; saturates at the far end of the range.
#[must_use]
pub fn duration_proto(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

/// [`SystemTime`] to a protobuf timestamp (UTC).
#[must_use]
pub fn timestamp(value: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(value)
}

/// Protobuf timestamp to [`SystemTime`].
///
/// # Errors
/// When it lies outside what the system clock can hold.
pub fn system_time(value: &prost_types::Timestamp) -> Result<SystemTime, ConversionError> {
    SystemTime::try_from(*value).map_err(|_| ConversionError("timestamp"))
}
