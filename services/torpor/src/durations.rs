//! Durations and times as people write and read them.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Reads "90s", "15m", "1h 30m", or a plain number of seconds.
pub fn parse(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|error| format!("{error} (write 90s, 15m or 1h)"))
}

/// A short form of a duration: "85 ms", "3.2 s", "4m 10s".
pub fn short(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1000.0;
    if millis < 1000.0 {
        format!("{millis:.0} ms")
    } else if duration.as_secs() < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
    }
}

/// How long ago a protobuf time was: "12s ago"; "-" when absent or in the future.
pub fn age(timestamp: Option<&prost_types::Timestamp>, now: SystemTime) -> String {
    let elapsed = timestamp
        .and_then(|value| api::system_time(value).ok())
        .and_then(|value| now.duration_since(value).ok());
    match elapsed {
        Some(elapsed) => format!("{} ago", coarse(elapsed)),
        None => "-".to_owned(),
    }
}

/// A duration by its largest unit: "12s", "3m", "5h", "2d".
pub fn coarse(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86_400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// RFC 3339 in UTC; "-" when absent.
pub fn rfc3339(timestamp: Option<&prost_types::Timestamp>) -> String {
    timestamp
        .and_then(|value| {
            let whole = OffsetDateTime::from_unix_timestamp(value.seconds).ok()?;
            // Milliseconds are what a reader can use.
            let millis = i64::from(value.nanos / 1_000_000);
            (whole + time::Duration::milliseconds(millis)).format(&Rfc3339).ok()
        })
        .unwrap_or_else(|| "-".to_owned())
}

/// The time from one protobuf time to another; zero when it is negative.
pub fn between(from: &prost_types::Timestamp, to: &prost_types::Timestamp) -> Duration {
    match (api::system_time(from), api::system_time(to)) {
        (Ok(from), Ok(to)) => to.duration_since(from).unwrap_or_default(),
        _ => Duration::ZERO,
    }
}

/// A protobuf duration; zero when absent or negative.
pub fn of(duration: Option<&prost_types::Duration>) -> Duration {
    duration.and_then(|value| api::duration(value).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        let cases = [("90", 90), ("90s", 90), ("15m", 900), ("1h 30m", 5400)];
        for (text, seconds) in cases {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert!(parse("soon").expect_err("no duration").contains("write 90s"));
    }

    #[test]
    fn shows_what_people_read() {
        assert_eq!(short(Duration::from_millis(85)), "85 ms");
        assert_eq!(short(Duration::from_millis(3210)), "3.2 s");
        assert_eq!(short(Duration::from_secs(250)), "4m 10s");
        assert_eq!(coarse(Duration::from_secs(7300)), "2h");
        assert_eq!(
            rfc3339(Some(&prost_types::Timestamp { seconds: 0, nanos: 5_000_000 })),
            "1970-01-01T00:00:00.005Z"
        );
        assert_eq!(rfc3339(None), "-");
    }
}
