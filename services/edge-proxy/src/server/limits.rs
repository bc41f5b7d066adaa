//! What one client address may hold of a listener, so that whoever opens all they can leaves room for others.
//!
//! There is an entry per address that has a connection, or had one so lately that its rate still counts. Entries are found
//! under one of many locks, once per connection; what counts the requests of an address is in its entry.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::domain::rate::Bucket;

/// Parts of the table with a lock each.
const SHARDS: usize = 64;
/// Entries of a part beyond which those that count for nothing any more are looked for.
const SWEEP_AT: usize = 64;
/// One address may do this part of a listener's handshakes at one time.
const HANDSHAKE_SHARE: usize = 4;

/// The bounds of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerAddress {
    /// Connections at one time; 0 means no bound of its own.
    pub connections: usize,
    /// Requests per second; 0 means no limit.
    pub requests_per_second: u32,
    /// Requests at one time whose sender is not known yet; more wait.
    pub unverified: usize,
}

/// The addresses that have connections to one listener.
#[derive(Debug)]
pub struct Addresses {
    shards: Vec<Mutex<Shard>>,
    bounds: PerAddress,
    handshakes: usize,
}

#[derive(Debug)]
struct Shard {
    entries: HashMap<IpAddr, Entry>,
    sweep_at: usize,
}

#[derive(Debug)]
struct Entry {
    connections: usize,
    address: Arc<Address>,
}

/// What all connections of one address share.
#[derive(Debug)]
pub struct Address {
    handshakes: Semaphore,
    unverified: Semaphore,
    requests: Bucket,
}

/// The place of one connection among those of its address. Dropping it gives the place back.
#[derive(Debug)]
pub struct Place {
    addresses: Arc<Addresses>,
    key: IpAddr,
    address: Arc<Address>,
}

impl Addresses {
    /// `handshakes` is the bound of the whole listener.
    pub fn new(bounds: PerAddress, handshakes: usize) -> Arc<Self> {
        let shard = || Mutex::new(Shard { entries: HashMap::new(), sweep_at: SWEEP_AT });
        let handshakes = handshakes.div_ceil(HANDSHAKE_SHARE);
        Arc::new(Self { shards: (0..SHARDS).map(|_| shard()).collect(), bounds, handshakes })
    }

    /// A place for one more connection; `None` when its address has all it may have.
    pub fn enter(self: &Arc<Self>, client: IpAddr, now: Instant) -> Option<Place> {
        let key = key(client);
        let mut shard = self.shard(key);
        shard.sweep(now);
        let entry = shard.entries.entry(key).or_insert_with(|| Entry {
            connections: 0,
            address: Arc::new(Address {
                handshakes: Semaphore::new(self.handshakes.min(Semaphore::MAX_PERMITS)),
                unverified: Semaphore::new(self.bounds.unverified.min(Semaphore::MAX_PERMITS)),
                requests: Bucket::new(self.bounds.requests_per_second.into(), now),
            }),
        });
        if self.bounds.connections > 0 && entry.connections >= self.bounds.connections {
            return None;
        }
        entry.connections += 1;
        Some(Place { addresses: self.clone(), key, address: entry.address.clone() })
    }

    fn leave(&self, key: IpAddr, now: Instant) {
        let mut shard = self.shard(key);
        let Some(entry) = shard.entries.get_mut(&key) else { return };
        entry.connections -= 1;
        // An address that comes back at once finds its rate as it left it.
        if entry.is_forgotten(now) {
            shard.entries.remove(&key);
        }
    }

    fn shard(&self, key: IpAddr) -> MutexGuard<'_, Shard> {
        // The last bytes that tell addresses apart: of IPv6, those of the network.
        let byte = match key {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(v6) => v6.octets()[7] ^ v6.octets()[5],
        };
        // Each change is one insertion, removal or count.
        self.shards[usize::from(byte) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    /// Forgets entries that only a rate kept, each time the part has doubled.
    fn sweep(&mut self, now: Instant) {
        if self.entries.len() >= self.sweep_at {
            self.entries.retain(|_, entry| !entry.is_forgotten(now));
            self.sweep_at = (self.entries.len() * 2).max(SWEEP_AT);
        }
    }
}

impl Entry {
    fn is_forgotten(&self, now: Instant) -> bool {
        self.connections == 0 && self.address.requests.is_full(now)
    }
}

impl Address {
    /// Waits for a turn among the handshakes of this address.
    pub async fn handshake(&self) -> Option<SemaphorePermit<'_>> {
        self.handshakes.acquire().await.ok()
    }

    /// Waits for a turn among the requests of this address whose sender is not known yet.
    pub async fn unverified(&self) -> Option<SemaphorePermit<'_>> {
        self.unverified.acquire().await.ok()
    }

    /// Counts a request.
    ///
    /// # Errors
    /// When the address is over its rate: after how long it is not.
    pub fn request(&self, now: Instant) -> Result<(), Duration> {
        self.requests.take(now)
    }
}

impl Place {
    pub fn address(&self) -> &Arc<Address> {
        &self.address
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.addresses.leave(self.key, Instant::now());
    }
}

/// What counts as one address: of IPv6 a network of 64 bits, which one client has to itself.
fn key(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(connections: usize, requests_per_second: u32) -> Arc<Addresses> {
        Addresses::new(PerAddress { connections, requests_per_second, unverified: 1 }, 1)
    }

    fn entries(addresses: &Addresses) -> usize {
        addresses.shards.iter().map(|shard| shard.lock().unwrap().entries.len()).sum()
    }

    #[test]
    fn one_address_leaves_room_for_others() {
        let (addresses, now) = (addresses(2, 0), Instant::now());
        let enter = |address: &str| addresses.enter(address.parse().unwrap(), now);
        for (first, same, other) in [
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("192.0.2.9", "::ffff:192.0.2.9", "192.0.2.10"),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"),
        ] {
            let held = (enter(first).unwrap(), enter(same).unwrap());
            assert!(enter(first).is_none() && enter(same).is_none(), "{first}");
            assert!(enter(other).is_some(), "{other}");
            drop(held);
            assert!(enter(same).is_some());
        }
        assert_eq!(entries(&addresses), 0, "an address is remembered for nothing");
    }

    #[test]
    fn a_rate_outlives_its_connections_and_not_for_long() {
        let (addresses, now) = (addresses(0, 1), Instant::now());
        let client = IpAddr::from([192, 0, 2, 1]);
        let later = now + Duration::from_secs(10);
        assert_eq!(addresses.enter(client, now).unwrap().address().request(now), Ok(()));
        let again = addresses.enter(client, now).unwrap();
        assert!(again.address().request(now).is_err());
        assert_eq!(again.address().request(later), Ok(()));
        drop(again);
        // Many addresses that came once are not kept.
        let once = |number: u32, at: Instant| {
            let place = addresses.enter(std::net::Ipv4Addr::from_bits(number).into(), at).unwrap();
            place.address().request(at).unwrap();
        };
        let last = later + Duration::from_secs(100);
        (0..10_000).for_each(|number| once(number, later));
        (0..64 * 256).for_each(|number| once((number << 16) | (number % 64), last));
        assert_eq!(entries(&addresses), 64 * 256, "the first are remembered for nothing");
    }
}
