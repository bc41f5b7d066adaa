//! Page tokens: where the next page starts, opaque to callers.

use std::time::{Duration, SystemTime};

use model::MicrovmId;
use uuid::Uuid;

/// Position in the list of microVMs, newest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Nanoseconds since 1970 of the start, negated so that newer sorts first.
    pub newest_first: i128,
    pub id: MicrovmId,
}

impl Position {
    /// Position of a microVM that started at `start`.
    pub fn new(start: SystemTime, id: MicrovmId) -> Self {
        let nanos = start.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        Self { newest_first: -i128::try_from(nanos).unwrap_or(i128::MAX), id }
    }

    /// As a page token: hex of the start and the id, with a checksum, so that a
    /// token somebody made up is noticed.
    pub fn to_token(&self) -> String {
        let body = format!("{:032x}{:032x}", -self.newest_first, self.id.uuid().as_u128());
        format!("{body}{}", checksum(&body))
    }

    /// From a page token; `None` when it is not one of ours.
    pub fn from_token(token: &str) -> Option<Self> {
        if token.len() != 72 || !token.is_ascii() {
            return None;
        }
        let (body, sum) = token.split_at(64);
        if checksum(body) != sum {
            return None;
        }
        let nanos = i128::from_str_radix(&body[..32], 16).ok()?;
        let id = u128::from_str_radix(&body[32..], 16).ok()?;
        Some(Self { newest_first: -nanos, id: MicrovmId::from_uuid(Uuid::from_u128(id)) })
    }

    /// When the microVM at this position started.
    pub fn start(&self) -> SystemTime {
        let nanos = u64::try_from(-self.newest_first).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
    }
}

fn checksum(body: &str) -> String {
    blake3::hash(body.as_bytes()).to_hex()[..8].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tokens_round_trip(nanos in 0u64..u64::MAX, id: u128) {
            let start = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
            let position = Position::new(start, MicrovmId::from_uuid(Uuid::from_u128(id)));
            prop_assert_eq!(position.start(), start);
            prop_assert_eq!(Position::from_token(&position.to_token()), Some(position));
        }

        #[test]
        fn foreign_tokens_are_refused(token in ".{0,90}", hex in "[0-9a-f]{72}") {
            prop_assert_eq!(Position::from_token(&token), None);
            prop_assert_eq!(Position::from_token(&hex), None);
        }
    }
}
