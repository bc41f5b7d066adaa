//! Reads a request's body within bounds: its own length, a time, and a share of the memory for all bodies,
//! taken as the bytes come, so that who announces much and sends little holds little.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How much of an unwanted body is read and thrown away, in multiples of the limit.
const DISCARD: usize = 16;
/// How long the next piece of it is waited for.
const DISCARD_STALL: Duration = Duration::from_millis(500);
/// For how many requests at one time.
const DISCARDS: usize = 64;
/// One access key's bodies may take this part of the memory.
const KEY_SHARE: usize = 4;
/// Shares that keys are spread over: two that meet in one are unlucky, and still leave the others alone.
const SHARES: usize = 256;

/// Bounds of bodies, and the memory they share.
#[derive(Debug)]
pub struct Bodies {
    bytes_max: usize,
    wait: Duration,
    stall: Duration,
    memory: Arc<Semaphore>,
    shares: Vec<Arc<Semaphore>>,
    spread: RandomState,
    discards: Semaphore,
}

/// A body, and its share of the memory while it is held.
#[derive(Debug, Default)]
pub struct Held {
    pub bytes: Bytes,
    /// Of all bodies' memory, and of its key's.
    _share: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    TooLarge,
    /// It did not come in time.
    TooSlow,
    /// The client went away or broke the protocol.
    Broken,
    /// The memory for bodies is used up, or its key's part of it.
    TooMany,
}

impl Bodies {
    /// Bodies of at most `bytes_max`, each within `wait` and without a pause of `stall`, all within `memory` bytes.
    pub fn new(bytes_max: usize, wait: Duration, stall: Duration, memory: usize) -> Self {
        let memory = memory.min(Semaphore::MAX_PERMITS);
        let share = (memory / KEY_SHARE).max(bytes_max);
        Self {
            bytes_max,
            wait,
            stall,
            memory: Arc::new(Semaphore::new(memory)),
            shares: (0..SHARES).map(|_| Arc::new(Semaphore::new(share))).collect(),
            spread: RandomState::new(),
            discards: Semaphore::new(DISCARDS),
        }
    }

    /// Reads a body that a request says `key` has signed.
    ///
    /// # Errors
    /// Says why there is none. `body` has what is left of it, if that may still come.
    pub async fn read(&self, body: &mut Option<Incoming>, key: &str) -> Result<Held, BodyError> {
        let Some(mut coming) = body.take_if(|body| !body.is_end_stream()) else {
            return Ok(Held::default());
        };
        let share = &self.shares[(self.spread.hash_one(key) % SHARES as u64) as usize];
        let read = tokio::time::timeout(self.wait, self.gather(&mut coming, share)).await;
        let read = read.unwrap_or(Err(BodyError::TooSlow));
        if matches!(read, Err(BodyError::TooLarge | BodyError::TooMany)) {
            *body = Some(coming);
        }
        read
    }

    /// Reads what comes and throws it away, within bounds: a client that still writes when the connection closes would not
    /// see its answer. False when something may be left.
    pub async fn discard(&self, mut body: Incoming) -> bool {
        if body.is_end_stream() {
            return true;
        }
        // Strangers' bodies are no reason to wait: without room the connection just closes.
        let Ok(_turn) = self.discards.try_acquire() else { return false };
        let discarding = async {
            let mut left = self.bytes_max.saturating_mul(DISCARD);
            loop {
                let frame = match tokio::time::timeout(DISCARD_STALL, body.frame()).await {
                    Ok(Some(Ok(frame))) => frame,
                    Ok(None) => return true,
                    Ok(Some(Err(_))) | Err(_) => return false,
                };
                let length = frame.data_ref().map_or(0, Bytes::len);
                let Some(rest) = left.checked_sub(length) else {
                    return false;
                };
                left = rest;
            }
        };
        tokio::time::timeout(self.wait, discarding).await.unwrap_or(false)
    }

    async fn gather(&self, body: &mut Incoming, key: &Arc<Semaphore>) -> Result<Held, BodyError> {
        let announced = body.size_hint().lower();
        if announced > u64::try_from(self.bytes_max).unwrap_or(u64::MAX) {
            return Err(BodyError::TooLarge);
        }
        let (mut bytes, mut share) = (BytesMut::new(), None::<(OwnedSemaphorePermit, OwnedSemaphorePermit)>);
        loop {
            let next = tokio::time::timeout(self.stall, body.frame()).await;
            let Some(frame) = next.map_err(|_| BodyError::TooSlow)? else { break };
            // Trailers say nothing here.
            let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > self.bytes_max {
                return Err(BodyError::TooLarge);
            }
            let more = u32::try_from(data.len()).map_err(|_| BodyError::TooLarge)?;
            let take = |from: &Arc<Semaphore>| {
                from.clone().try_acquire_many_owned(more).map_err(|_| BodyError::TooMany)
            };
            let (all, own) = (take(&self.memory)?, take(key)?);
            match &mut share {
                None => share = Some((all, own)),
                Some((held, held_own)) => {
                    held.merge(all);
                    held_own.merge(own);
                }
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Held { bytes: bytes.freeze(), _share: share })
    }
}
