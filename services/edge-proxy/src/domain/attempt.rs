//! How a request finds its microVM: what to do for a route as it stands, and what to make of a host's answer.
//! The loop that acts on it is in `adapters::dial`.

use std::time::Duration;

use crate::domain::refusal::Refusal;
use crate::domain::route::{Route, RouteState};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Ask the host for a tunnel; it holds the request during a launch or wake.
    Open,
    /// Wait until more is known.
    Wait,
    /// Have the scheduler place and wake it.
    Resume,
    Refuse(Refusal),
}

/// The move for a route as it stands.
pub fn for_route(route: &Route) -> Move {
    match (route.state, &route.tunnel_address) {
        (RouteState::Ended, _) => Move::Refuse(Refusal::MicrovmConnectFailed),
        (RouteState::Suspended, _) if !route.wake => Move::Refuse(Refusal::Asleep),
        (_, Some(_)) => Move::Open,
        (RouteState::Suspended, None) => Move::Resume,
        (RouteState::Pending | RouteState::Running, None) => Move::Wait,
    }
}

/// How a host answered, other than with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It does not hold the microVM, or may not speak for it any more.
    Elsewhere,
    /// It may not serve: it is cut off from etcd, and not every scheduler vouches for it.
    Fenced,
    /// It cannot be reached, or broke off.
    Unreachable,
    /// The microVM sleeps and may not be woken.
    Suspended,
    /// It could not be woken.
    WakeFailed,
    /// Its host has no room to wake it.
    NoRoom,
    /// It has no stream of that name, or not yet.
    StreamGone,
    PortClosed,
    Ended,
    Busy(Duration),
    NoIngress,
    /// The host did not understand, or we did not.
    Invalid,
    /// The whole wait for a launch or wake went by.
    TooLate,
}

/// What to make of a host's answer: `None` means that the route was out of date and another look is worth it.
pub fn after(outcome: Outcome) -> Option<Refusal> {
    match outcome {
        Outcome::Elsewhere
        | Outcome::Fenced
        | Outcome::Unreachable
        | Outcome::NoRoom
        | Outcome::StreamGone => None,
        Outcome::Suspended | Outcome::WakeFailed => Some(Refusal::Asleep),
        Outcome::PortClosed => Some(Refusal::AppConnectFailed),
        Outcome::Ended => Some(Refusal::MicrovmConnectFailed),
        Outcome::TooLate => Some(Refusal::NotReady),
        Outcome::Busy(retry_after) => Some(Refusal::TooMany { retry_after }),
        Outcome::NoIngress => Some(Refusal::PortDenied),
        Outcome::Invalid => Some(Refusal::Internal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_by_state_address_and_wake() {
        use RouteState::{Ended, Pending, Running, Suspended};
        let asleep = Move::Refuse(Refusal::Asleep);
        let gone = Move::Refuse(Refusal::MicrovmConnectFailed);
        for (state, placed, wake, expected) in [
            (Pending, false, true, Move::Wait),
            (Pending, true, true, Move::Open),
            (Pending, true, false, Move::Open),
            (Running, false, true, Move::Wait),
            (Running, true, false, Move::Open),
            (Suspended, true, true, Move::Open),
            (Suspended, false, true, Move::Resume),
            (Suspended, true, false, asleep.clone()),
            (Suspended, false, false, asleep),
            (Ended, true, true, gone.clone()),
            (Ended, false, false, gone),
        ] {
            let route = Route {
                microvm_id: "microvm-x".into(),
                image: "app".into(),
                state,
                generation: 1,
                host: "host-1".into(),
                tunnel_address: placed.then(|| "127.0.0.1:1".into()),
                wake,
                token_revocations: 0,
            };
            assert_eq!(for_route(&route), expected, "{state:?} placed={placed} wake={wake}");
        }
    }
}
