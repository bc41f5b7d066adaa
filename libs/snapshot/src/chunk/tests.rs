use proptest::prelude::*;

use super::*;

/// The raw bytes a decoded chunk stands for.
fn restore(decoded: &Decoded, raw_len: usize) -> Vec<u8> {
    let mut raw = vec![0; raw_len];
    for (offset, bytes) in decoded.runs() {
        raw[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    raw
}

fn stored(raw_len: u32, payload_len: u32, payload: &[u8]) -> Vec<u8> {
    let frame = zstd::bulk::compress(payload, 1).unwrap();
    [MAGIC.as_slice(), &raw_len.to_le_bytes(), &payload_len.to_le_bytes(), &frame].concat()
}

/// Pages that are zero, repetitive or noise, and an end inside a page.
fn raw_chunk() -> impl Strategy<Value = Vec<u8>> {
    let page = prop_oneof![
        3 => Just(vec![0u8; PAGE]),
        2 => any::<u8>().prop_map(|byte| vec![byte; PAGE]),
        1 => any::<u64>().prop_map(noise),
    ];
    (prop::collection::vec(page, 1..24), 0..PAGE).prop_map(|(pages, cut)| {
        let mut raw = pages.concat();
        raw.truncate(raw.len() - cut);
        raw
    })
}

fn noise(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_chunk_comes_back(raw in raw_chunk()) {
        match encode(&raw) {
            None => prop_assert!(raw.iter().all(|byte| *byte == 0)),
            Some(stored) => {
                prop_assert!(stored.len() as u64 <= STORED_BYTES_MAX);
                let decoded = decode(&stored, raw.len()).unwrap();
                prop_assert_eq!(restore(&decoded, raw.len()), raw);
            }
        }
    }

    #[test]
    fn no_bytes_make_decoding_panic_or_overrun(
        raw in raw_chunk(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        if let Some(mut stored) = encode(&raw) {
            for (at, byte) in damage {
                let at = at.index(stored.len());
                stored[at] = byte;
            }
            if let Ok(decoded) = decode(&stored, raw.len()) {
                for (offset, bytes) in decoded.runs() {
                    prop_assert!(offset as usize + bytes.len() <= raw.len());
                }
            }
        }
    }
}

#[test]
fn whole_chunks() {
    let noise: Vec<u8> = (0..CHUNK / PAGE).flat_map(|page| noise(page as u64)).collect();
    let stored = encode(&noise).unwrap();
    assert!(stored.len() as u64 <= STORED_BYTES_MAX, "{} bytes", stored.len());
    assert_eq!(restore(&decode(&stored, CHUNK).unwrap(), CHUNK), noise);
    assert!(encode(&vec![0; CHUNK]).is_none());
    assert!(encode(&[0]).is_none());
    assert!(encode(&[1]).is_some());
}

#[test]
fn the_bytes_are_the_same_every_time() {
    let raw = noise(7);
    assert_eq!(encode(&raw), encode(&raw));
}

#[test]
fn what_is_not_a_chunk_is_refused() {
    let page = [1u8; PAGE];
    let one_page = [&[1u8], page.as_slice()].concat();
    let good = stored(PAGE as u32, one_page.len() as u32, &one_page);
    assert!(decode(&good, PAGE).is_ok());
    // 4 GiB of zeros in a few hundred KB would be the classic; far less shows the same.
    let bomb = vec![0u8; 64 << 20];
    let bomb_frame = stored(CHUNK as u32, (CHUNK + 128) as u32, &bomb);
    assert!(bomb_frame.len() < 16 << 10, "it is small as stored");
    let mut wrong_magic = good.clone();
    wrong_magic[0] ^= 1;
    let cases: Vec<(&str, Vec<u8>, usize, &str)> = vec![
        ("empty", vec![], PAGE, "shorter than a chunk's header"),
        ("header only", good[..HEADER_BYTES].to_vec(), PAGE, "its payload is"),
        ("cut", good[..good.len() - 1].to_vec(), PAGE, "zstd"),
        ("magic", wrong_magic, PAGE, "does not start"),
        ("other length", good.clone(), PAGE - 1, "it holds 4096 bytes"),
        ("bomb", bomb_frame, CHUNK, "zstd"),
        ("huge payload", stored(PAGE as u32, u32::MAX, &one_page), PAGE, "cannot be"),
        ("no pages", stored(PAGE as u32, 1, &[0]), PAGE, "cannot be"),
        ("short payload", stored(2 * PAGE as u32, 2 + PAGE as u32, &one_page), 2 * PAGE, "its payload is"),
        (
            "page behind the end",
            stored(PAGE as u32, one_page.len() as u32, &[&[3u8], page.as_slice()].concat()),
            PAGE,
            "behind the end",
        ),
        (
            "page missing",
            stored(2 * PAGE as u32, one_page.len() as u32, &[&[3u8], page.as_slice()].concat()),
            2 * PAGE,
            "do not match",
        ),
        (
            "page too many",
            stored(2 * PAGE as u32, 1 + 2 * PAGE as u32, &[&[1u8], page.as_slice(), &page].concat()),
            2 * PAGE,
            "do not match",
        ),
    ];
    for (name, bytes, raw_len, expected) in cases {
        let detail = decode(&bytes, raw_len).unwrap_err();
        assert!(detail.contains(expected), "{name}: {detail}");
    }
}
