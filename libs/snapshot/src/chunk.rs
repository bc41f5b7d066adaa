//! The stored form of up to 4 MiB of a file.
//!
//! ```text
//! magic "TCK1"   u32 raw length   u32 payload length   zstd frame of the payload
//! payload: one bit per 4 KiB page (lowest bit first), then the pages whose bit is set
//! ```
//!
//! Numbers are little endian. Pages without a bit are zero. Decoding never allocates more than the lengths in
//! the header, and those are bounded, so no object however made takes more than a chunk and its bitmap of
//! memory. It does not check the digest; its callers have done so.

use std::ops::Range;

/// Bytes of a file per chunk.
pub const CHUNK_BYTES: u64 = 4 * 1024 * 1024;

/// Granularity in which zeros are left out, in bytes.
pub const PAGE_BYTES: u64 = 4096;

/// Higher levels cost far more time than they save in transfer: memory pages
/// are either very compressible or hardly at all.
const ZSTD_LEVEL: i32 = 1;

const MAGIC: &[u8; 4] = b"TCK1";
const HEADER_BYTES: usize = 12;
const CHUNK: usize = CHUNK_BYTES as usize;
const PAGE: usize = PAGE_BYTES as usize;

/// Longest object [`encode`] makes: incompressible pages, their bitmap, the
/// header, and what zstd adds at worst (a 256th and a little).
pub(crate) const STORED_BYTES_MAX: u64 = CHUNK_BYTES + CHUNK_BYTES / 128;

/// Whether a page can be left out.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    // Folding whole blocks without an early exit is what compilers vectorise.
    page.chunks(128).all(|block| block.iter().fold(0, |any, byte| any | byte) == 0)
}

/// Encodes up to [`CHUNK_BYTES`] of a file; `None` when all of it is zero.
pub(crate) fn encode(raw: &[u8]) -> Option<Vec<u8>> {
    assert!(!raw.is_empty() && raw.len() <= CHUNK, "a chunk is 1 byte to 4 MiB");
    let mut payload = vec![0; raw.len().div_ceil(PAGE).div_ceil(8)];
    let bitmap_len = payload.len();
    for (index, page) in raw.chunks(PAGE).enumerate() {
        if !is_zero(page) {
            payload[index / 8] |= 1 << (index % 8);
            payload.extend_from_slice(page);
        }
    }
    if payload.len() == bitmap_len {
        return None;
    }
    let frame = zstd::bulk::compress(&payload, ZSTD_LEVEL)
        .expect("compressing into a buffer of zstd's own bound cannot fail");
    let mut stored = Vec::with_capacity(HEADER_BYTES + frame.len());
    stored.extend_from_slice(MAGIC);
    stored.extend_from_slice(&u32::try_from(raw.len()).expect("at most 4 MiB").to_le_bytes());
    stored
        .extend_from_slice(&u32::try_from(payload.len()).expect("at most 4 MiB and a bitmap").to_le_bytes());
    stored.extend_from_slice(&frame);
    Some(stored)
}

/// A decoded chunk: runs of non-zero pages, everything else is zero.
#[derive(Debug)]
pub(crate) struct Decoded {
    payload: Vec<u8>,
    /// Where each run lies in the raw chunk, and where its bytes start in the payload.
    runs: Vec<(Range<usize>, usize)>,
}

impl Decoded {
    /// Offset within the chunk and bytes of each run of non-zero pages.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.runs.iter().map(|(raw, start)| (raw.start as u64, &self.payload[*start..*start + raw.len()]))
    }
}

/// Decodes an object that must stand for exactly `raw_len` bytes of a file. The
/// error is a sentence about what does not fit.
pub(crate) fn decode(stored: &[u8], raw_len: usize) -> Result<Decoded, String> {
    if raw_len == 0 || raw_len > CHUNK {
        return Err(format!("a chunk of {raw_len} bytes cannot be"));
    }
    let Some((header, frame)) = stored.split_at_checked(HEADER_BYTES) else {
        return Err("it is shorter than a chunk's header".to_owned());
    };
    if &header[..4] != MAGIC {
        return Err("it does not start like a chunk".to_owned());
    }
    let number = |at: usize| {
        let bytes = header[at..at + 4].try_into().expect("four bytes were sliced");
        u32::from_le_bytes(bytes) as usize
    };
    if number(4) != raw_len {
        return Err(format!("it holds {} bytes of its file, not {raw_len}", number(4)));
    }
    let pages = raw_len.div_ceil(PAGE);
    let bitmap_len = pages.div_ceil(8);
    let payload_len = number(8);
    if payload_len <= bitmap_len || payload_len > bitmap_len + raw_len {
        return Err(format!("a payload of {payload_len} bytes cannot be"));
    }
    // The capacity bounds the output; a frame that has more to say is refused.
    let payload = zstd::bulk::decompress(frame, payload_len).map_err(|error| format!("zstd: {error}"))?;
    if payload.len() != payload_len {
        return Err(format!("its payload is {} bytes, not {payload_len}", payload.len()));
    }
    let runs = read_bitmap(&payload[..bitmap_len], raw_len)?;
    let end = runs.last().map_or(bitmap_len, |(raw, start)| start + raw.len());
    if end != payload_len {
        return Err("its bitmap and its pages do not match".to_owned());
    }
    Ok(Decoded { payload, runs })
}

fn read_bitmap(bitmap: &[u8], raw_len: usize) -> Result<Vec<(Range<usize>, usize)>, String> {
    let pages = raw_len.div_ceil(PAGE);
    let is_set = |page: usize| bitmap[page / 8] & (1 << (page % 8)) != 0;
    if (pages..bitmap.len() * 8).any(is_set) {
        return Err("its bitmap has pages behind the end".to_owned());
    }
    let mut runs: Vec<(Range<usize>, usize)> = Vec::new();
    let mut at = bitmap.len();
    for page in (0..pages).filter(|page| is_set(*page)) {
        let raw = page * PAGE..raw_len.min((page + 1) * PAGE);
        let len = raw.len();
        match runs.last_mut() {
            Some((last, _)) if last.end == raw.start => last.end = raw.end,
            _ => runs.push((raw, at)),
        }
        at += len;
    }
    Ok(runs)
}

#[cfg(test)]
mod tests;
