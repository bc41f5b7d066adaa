//! Reads a request's body within bounds: its own length, a time, and a share of the memory for all bodies,
//! taken as the bytes come, so that who announces much and sends little holds little.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Incoming};
use tokio::sync::{Semaphore, SemaphorePermit};

/// How much of an unwanted body is read and thrown away, in multiples of the limit.
const DISCARD: usize = 16;

/// Bounds of bodies, and the memory they share.
#[derive(Debug)]
pub struct Bodies {
    bytes_max: usize,
    wait: Duration,
    memory: Semaphore,
}

/// A body, and its share of the memory while it is held.
#[derive(Debug)]
pub struct Held<'a> {
    pub bytes: Bytes,
    _share: Option<SemaphorePermit<'a>>,
}

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    TooLarge,
    /// It did not come in time.
    TooSlow,
    /// The client went away or broke the protocol.
    Broken,
    /// The memory for bodies is used up.
    TooMany,
}

impl Bodies {
    /// Bodies of at most `bytes_max`, each within `wait`, all within `memory` bytes.
    pub fn new(bytes_max: usize, wait: Duration, memory: usize) -> Self {
        Self { bytes_max, wait, memory: Semaphore::new(memory.min(Semaphore::MAX_PERMITS)) }
    }

    pub async fn read(&self, mut body: Incoming) -> Result<Held<'_>, BodyError> {
        if body.is_end_stream() {
            return Ok(Held { bytes: Bytes::new(), _share: None });
        }
        let read = tokio::time::timeout(self.wait, self.gather(&mut body)).await;
        let read = read.unwrap_or(Err(BodyError::TooSlow));
        if matches!(read, Err(BodyError::TooLarge | BodyError::TooMany)) {
            self.discard(body).await;
        }
        read
    }

    /// Reads what comes and throws it away, within bounds: a client that still
    /// writes when the connection closes would not see its answer.
    pub async fn discard(&self, mut body: Incoming) {
        let discarding = async {
            let mut left = self.bytes_max.saturating_mul(DISCARD);
            while let Some(Ok(frame)) = body.frame().await {
                let length = frame.data_ref().map_or(0, Bytes::len);
                let Some(rest) = left.checked_sub(length) else {
                    return;
                };
                left = rest;
            }
        };
        let _ = tokio::time::timeout(self.wait, discarding).await;
    }

    async fn gather(&self, body: &mut Incoming) -> Result<Held<'_>, BodyError> {
        let announced = body.size_hint().lower();
        if announced > u64::try_from(self.bytes_max).unwrap_or(u64::MAX) {
            return Err(BodyError::TooLarge);
        }
        let (mut bytes, mut share) = (BytesMut::new(), None::<SemaphorePermit<'_>>);
        while let Some(frame) = body.frame().await {
            // Trailers say nothing here.
            let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > self.bytes_max {
                return Err(BodyError::TooLarge);
            }
            let more = u32::try_from(data.len()).map_err(|_| BodyError::TooLarge)?;
            let more = self.memory.try_acquire_many(more).map_err(|_| BodyError::TooMany)?;
            match &mut share {
                None => share = Some(more),
                Some(share) => share.merge(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Held { bytes: bytes.freeze(), _share: share })
    }
}
