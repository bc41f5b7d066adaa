//! Waiting until the app can be snapshotted: its hook says so, or a port listens and the guest stands still.

use std::time::{Duration, Instant};

use api::guest::v1::{AwaitReadyRequest, AwaitReadyResponse, HookKind, ReadyOutcome};

use crate::hooks;
use crate::quiet::{self, Quiet};
use crate::tcp_table::listening_ports;

/// Pause between two looks. The bake's length, not a wake's, so not too eager: every
/// look takes CPU from the app that is starting.
const INTERVAL: Duration = Duration::from_millis(50);

/// Waits for the app as the request says.
///
/// `exited` tells whether the app has ended, `abandoned` whether nobody waits for the
/// answer any more; `own_ports` are the agent's. `Err` says what is wrong with the request.
pub fn await_ready(
    request: &AwaitReadyRequest,
    own_ports: &[u16],
    exited: impl Fn() -> bool,
    abandoned: impl Fn() -> bool,
) -> Result<AwaitReadyResponse, &'static str> {
    let timeout = request.timeout.as_ref().and_then(|timeout| api::duration(timeout).ok());
    let deadline = Instant::now() + timeout.ok_or("timeout is missing or out of range")?;
    let hook = u16::try_from(request.hook_port).map_err(|_| "hook_port is out of range")?;
    let mut response = AwaitReadyResponse::default();
    let mut quiet = Quiet::default();
    let outcome = loop {
        // The last look comes after the app's end or the deadline was seen, not before.
        let (exited, late) = (exited(), Instant::now() >= deadline);
        let seen = if hook == 0 {
            // A port alone says little: see `quiet`.
            look_at_ports(request, own_ports, &mut response)
                .filter(|_| late || quiet.look(Instant::now(), quiet::busy_ticks()))
        } else if late {
            None
        } else {
            look_at_hook(hook, deadline, &mut response)
        };
        match seen {
            Some(outcome) if !exited => break outcome,
            _ if exited => break ReadyOutcome::AppExited,
            _ if late || abandoned() => break ReadyOutcome::TimedOut,
            _ => std::thread::sleep(INTERVAL.min(deadline.saturating_duration_since(Instant::now()))),
        }
    };
    response.set_outcome(outcome);
    Ok(response)
}

fn look_at_hook(port: u16, deadline: Instant, response: &mut AwaitReadyResponse) -> Option<ReadyOutcome> {
    let path = hooks::path(HookKind::Ready).expect("the ready hook has a path");
    // No answer (not listening yet, or broken off) is not ready yet.
    let status = hooks::post(port, path, "", deadline).ok()?;
    response.http_status = u32::from(status);
    match status {
        200 => {
            response.listening_port = u32::from(port);
            Some(ReadyOutcome::Ready)
        }
        503 => None,
        _ => Some(ReadyOutcome::Refused),
    }
}

fn look_at_ports(
    request: &AwaitReadyRequest,
    own_ports: &[u16],
    response: &mut AwaitReadyResponse,
) -> Option<ReadyOutcome> {
    let listening = listening_ports(own_ports);
    let wanted = |port: &u16| {
        // An image that names no port is ready when it listens anywhere.
        request.listen_ports.is_empty() || request.listen_ports.contains(&u32::from(*port))
    };
    response.listening_port = u32::from(listening.into_iter().find(wanted)?);
    Some(ReadyOutcome::Ready)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    fn request(hook_port: u16, listen_ports: &[u16], millis: i32) -> AwaitReadyRequest {
        AwaitReadyRequest {
            hook_port: u32::from(hook_port),
            timeout: Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 }),
            listen_ports: listen_ports.iter().copied().map(u32::from).collect(),
        }
    }

    fn outcome(request: &AwaitReadyRequest, exited: bool) -> (ReadyOutcome, u32, u32) {
        let response = await_ready(request, &[], || exited, || false).unwrap();
        (response.outcome(), response.http_status, response.listening_port)
    }

    #[test]
    fn a_port_that_listens_is_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(outcome(&request(0, &[1, port], 990), false), (ReadyOutcome::Ready, 0, u32::from(port)));
        assert_eq!(outcome(&request(0, &[port], 900), true).0, ReadyOutcome::AppExited);
        drop(listener);
        assert_eq!(outcome(&request(0, &[port], 100), false), (ReadyOutcome::TimedOut, 0, 0));
    }

    #[test]
    fn the_hook_is_called_again_after_503() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for status in [503, 503, 200, 500] {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]);
                write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        });
        assert_eq!(outcome(&request(port, &[], 900), false), (ReadyOutcome::Ready, 200, u32::from(port)));
        assert_eq!(outcome(&request(port, &[], 900), false), (ReadyOutcome::Refused, 500, 0));
    }

    #[test]
    fn a_hook_that_is_not_there_runs_out_of_time_or_app() {
        assert_eq!(outcome(&request(1, &[], 120), false), (ReadyOutcome::TimedOut, 0, 0));
        assert_eq!(outcome(&request(1, &[], 900), true), (ReadyOutcome::AppExited, 0, 0));
    }
}
