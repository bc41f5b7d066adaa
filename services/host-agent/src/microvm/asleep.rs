//! The connections of a guest that sleeps: in this process while their tunnels wait here, and beside the snapshot for when
//! the microVM wakes in another process or on another host.

use std::path::Path;
use std::sync::Arc;

use model::ids::MicrovmId;
use serde::{Deserialize, Serialize};
use slot::{Frozen, FrozenTcp};
use tokio::net::TcpStream;

use super::gate::{Gate, Held, Portable, Successor, Waiting};
use crate::adapters::files;
use crate::domain::HostError;

/// Names the form of the file; raise it when that of a frozen connection changes.
const FORMAT: u32 = 1;
/// Longest file that is read, in bytes; what is beyond it is not written.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// All of one sleep.
#[derive(Default)]
pub struct Asleep {
    /// The snapshot they belong to; 0 when none.
    sequence: u64,
    connections: Vec<Connection>,
}

struct Connection {
    frozen: FrozenTcp,
    waiting: Waiting,
    /// Its socket in the new slot, while the guest is being woken.
    thawed: Option<TcpStream>,
}

/// A connection in the file.
#[derive(Serialize, Deserialize)]
struct Stored {
    frozen: FrozenTcp,
    portable: Portable,
}

impl Asleep {
    /// Freezes connections that have been held for the snapshot of this number. The guest stands still: both ends are of one
    /// moment. One that cannot be frozen, because it was reset for example, ends with its slot. The sockets stay as they
    /// are, so that a suspend that fails goes on with them.
    pub fn freeze(sequence: u64, held: &[Held]) -> Vec<Option<Frozen>> {
        let freeze = |held: &Held| {
            slot::freeze(&held.stream)
                .inspect_err(
                    |error| tracing::debug!(sequence, %error, "a connection does not survive the sleep"),
                )
                .ok()
        };
        held.iter().map(freeze).collect()
    }

    /// The connections of a sleep that has succeeded. The clients of those that the guest had closed get the rest at once.
    pub fn new(sequence: u64, held: Vec<Held>, frozen: Vec<Option<Frozen>>) -> Self {
        let asleep = |(held, frozen): (Held, Option<Frozen>)| match (frozen?, held.waiting) {
            (Frozen::Open(frozen), waiting) => Some(Connection { frozen, waiting, thawed: None }),
            (Frozen::Closed(rest), waiting) => {
                // When the client is gone meanwhile, nobody wants it.
                let _ = waiting.back?.send(Successor::Rest(rest));
                None
            }
        };
        Self { sequence, connections: held.into_iter().zip(frozen).filter_map(asleep).collect() }
    }

    /// Writes those that can go on elsewhere; no file when there are none.
    pub fn write(path: &Path, held: &[Held], frozen: &[Option<Frozen>]) -> Result<(), HostError> {
        let mut room = FILE_BYTES_MAX / 2;
        let stored = held.iter().zip(frozen).filter_map(|(held, frozen)| {
            let Some(Frozen::Open(frozen)) = frozen else { return None };
            let (frozen, portable) = (frozen.clone(), held.waiting.portable.clone()?);
            room = room.checked_sub((frozen.queued_bytes() + portable.for_guest.len()) as u64)?;
            Some(Stored { frozen, portable })
        });
        let stored: Vec<Stored> = stored.collect();
        if stored.is_empty() {
            return Ok(());
        }
        let bytes = postcard::to_stdvec(&(FORMAT, stored))
            .map_err(|error| HostError::Internal(format!("connections: {error}")))?;
        files::replace(path, &bytes, true)
    }

    /// After a restart or a move: takes up what lies beside the snapshot of this number. A file that cannot be read costs the
    /// connections and nothing else.
    pub fn load(&mut self, sequence: u64, path: &Path) {
        if self.sequence == sequence {
            return;
        }
        let stored = read(path).unwrap_or_else(|problem| {
            tracing::error!(path = %path.display(), problem, "connections are lost");
            Vec::new()
        });
        let connection = |Stored { frozen, portable }| Connection {
            frozen,
            waiting: Waiting { portable: Some(portable), back: None },
            thawed: None,
        };
        *self = Self { sequence, connections: stored.into_iter().map(connection).collect() };
    }

    /// Makes sockets of them, before the guest looks for its peers. Until the wake has succeeded the frozen ones are kept: a
    /// wake that fails leaves the guest's memory as it was, and them too.
    pub async fn thaw(&mut self, id: &MicrovmId, dialer: &slot::Dialer) {
        // Also those whose client has gone meanwhile: their sockets are closed when the gate opens, and so the app hears of it.
        for connection in &mut self.connections {
            connection.thawed = dialer
                .thaw(&connection.frozen)
                .await
                .inspect_err(
                    |error| tracing::warn!(microvm = %id, %error, "a connection did not survive the sleep"),
                )
                .ok();
        }
    }

    /// Lets them through the gate of the guest that has woken.
    pub fn rejoin(&mut self, gate: &Arc<Gate>) {
        for Connection { waiting, thawed, .. } in std::mem::take(&mut self.connections) {
            if let Some(stream) = thawed {
                gate.rejoin(stream, waiting);
            }
        }
        self.sequence = 0;
        gate.expire_unclaimed();
    }
}

fn read(path: &Path) -> Result<Vec<Stored>, String> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
        Ok(data) if data.len() > FILE_BYTES_MAX => return Err(format!("{} bytes are too many", data.len())),
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let (format, rest): (u32, _) = postcard::take_from_bytes(&bytes).map_err(|error| error.to_string())?;
    if format != FORMAT {
        return Err(format!("format {format} is not {FORMAT}"));
    }
    postcard::from_bytes(rest).map_err(|error| error.to_string())
}
