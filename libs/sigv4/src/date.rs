//! The times that signatures carry: whole seconds, UTC, ISO 8601 basic form.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::format_description::well_known::Rfc2822;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// Length of `20260102T030405Z`.
const BASIC_LENGTH: usize = 16;

/// A time as signatures carry it. `Display` is `20260102T030405Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(OffsetDateTime);

impl Timestamp {
    /// `20260102T030405Z` and nothing else.
    pub(crate) fn from_basic(text: &str) -> Option<Self> {
        let form = format_description!("[year][month][day]T[hour][minute][second]Z");
        if text.len() != BASIC_LENGTH || !text.is_ascii() {
            return None;
        }
        PrimitiveDateTime::parse(text, form).ok().map(|time| Self(time.assume_utc()))
    }

    /// A `Date` header: `Fri, 02 Jan 2026 03:04:05 GMT`, or the basic form.
    pub(crate) fn from_http(text: &str) -> Option<Self> {
        Self::from_basic(text).or_else(|| {
            let time = OffsetDateTime::parse(text, &Rfc2822).ok()?.checked_to_offset(time::UtcOffset::UTC)?;
            (0..=9999).contains(&time.year()).then_some(Self(time))
        })
    }

    /// The day, as the credential's scope has it: `20260102`.
    pub(crate) fn day(self) -> String {
        self.to_string()[..8].to_owned()
    }

    /// This time less `duration`; stops at the calendar's start.
    pub(crate) fn before(self, duration: Duration) -> Self {
        let duration = time::Duration::try_from(duration).unwrap_or(time::Duration::MAX);
        Self(self.0.checked_sub(duration).unwrap_or(OffsetDateTime::UNIX_EPOCH))
    }

    /// This time plus `duration`; stops at the calendar's end.
    pub(crate) fn after(self, duration: Duration) -> Self {
        let duration = time::Duration::try_from(duration).unwrap_or(time::Duration::MAX);
        Self(self.0.checked_add(duration).unwrap_or(PrimitiveDateTime::MAX.assume_utc()))
    }
}

impl From<SystemTime> for Timestamp {
    /// Whole seconds since 1970; what is before 1970 or after 9999 is its end.
    fn from(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let time =
            i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
        Self(time.unwrap_or(PrimitiveDateTime::MAX.assume_utc()))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        time.0.into()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (time, date) = (self.0.time(), self.0.date());
        write!(f, "{:04}{:02}{:02}", date.year(), u8::from(date.month()), date.day())?;
        write!(f, "T{:02}{:02}{:02}Z", time.hour(), time.minute(), time.second())
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_zone_leads_out_of_the_calendar() {
        for (text, expected) in [
            ("Fri, 02 Jan 2026 03:04:05 GMT", Some("20260102T030405Z")),
            ("Fri, 02 Jan 2026 03:04:05 -0100", Some("20260102T040405Z")),
            ("20260102T030405Z", Some("20260102T030405Z")),
            ("31 Dec 9999 23:59:59 -0100", None),
            ("31 Dec 9999 23:59:59 PST", None),
            ("01 Jan 0000 00:00:00 +0100", None),
            ("Fri, 02 Jan 2026 03:04:05 +9999", None),
            ("", None),
        ] {
            let time = Timestamp::from_http(text).map(|time| time.to_string());
            assert_eq!(time.as_deref(), expected, "{text}");
        }
    }
}
