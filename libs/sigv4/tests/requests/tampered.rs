//! No signed part can change.

use super::recorded::recorded;
use super::{Message, Side};
use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use sigv4::{normal_path, parse};

/// Each text that differs from this one in one bit, and is still text.
fn flipped(text: &str) -> impl Iterator<Item = String> + '_ {
    flipped_bytes(text.as_bytes()).filter_map(|bytes| String::from_utf8(bytes).ok())
}

fn flipped_bytes(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..bytes.len() * 8).map(|bit| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    })
}

/// What a query says: pairs, decoded, in no order; the signature without regard to the case of its digits.
fn meaning(query: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', "%20")).collect::<Vec<u8>>();
    let mut pairs: Vec<_> = (query.split('&'))
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| match name {
            "X-Amz-Signature" => (decode(name), decode(value).to_ascii_lowercase()),
            _ => (decode(name), decode(value)),
        })
        .collect();
    pairs.sort();
    pairs
}

fn refused(side: &Side, message: &Message, what: &str) {
    assert!(side.verify(message).is_err(), "{}: believed with {what}", message.name);
}

#[test]
fn no_bit_of_method_path_and_query_can_change() {
    let (side, messages) = recorded();
    for message in &messages {
        for method in flipped(&message.method) {
            refused(&side, &Message { method: method.clone(), ..message.clone() }, &method);
        }
        // `.` for `/` is a path that the signature covers.
        for path in flipped(&message.path).filter(|path| normal_path(path) != normal_path(&message.path)) {
            refused(&side, &Message { path: path.clone(), ..message.clone() }, &path);
        }
        let meant = meaning(&message.query);
        for query in flipped(&message.query) {
            let message = message.with_query(&*query);
            if meaning(&query) == meant {
                assert_eq!(side.verify(&message), Ok(()), "{}: {query}", message.name);
            } else {
                refused(&side, &message, &query);
            }
        }
    }
}

#[test]
fn no_bit_of_the_body_can_change() {
    let (side, messages) = recorded();
    for message in &messages {
        let unsigned = message.name == "an unsigned payload";
        let longer = [message.body.clone(), b"\0".to_vec()].concat();
        for body in flipped_bytes(&message.body).chain([longer]) {
            let message = Message { body, ..message.clone() };
            assert_eq!(side.verify(&message).is_ok(), unsigned, "{}", message.name);
        }
    }
}

#[test]
fn no_bit_of_a_signed_header_can_change() {
    let (side, messages) = recorded();
    for message in &messages {
        let signed: Vec<String> =
            parse(message.request()).unwrap().signed_headers().map(str::to_owned).collect();
        for name in signed.iter().map(String::as_str).chain(["authorization"]) {
            let name: HeaderName = name.parse().unwrap();
            let Some(old) =
                message.headers.get(&name).filter(|_| message.headers.get_all(&name).iter().count() == 1)
            else {
                continue;
            };
            for value in
                flipped_bytes(old.as_bytes()).filter_map(|bytes| HeaderValue::from_bytes(&bytes).ok())
            {
                let mut message = message.clone();
                message.headers.insert(name.clone(), value.clone());
                // The signature's digits may be of either case, and nothing else.
                let same = name == "authorization" && {
                    let halves =
                        |text: &str| text.split_once("Signature=").map(|(a, b)| (a.to_owned(), b.to_owned()));
                    match (value.to_str().ok().and_then(halves), halves(old.to_str().unwrap())) {
                        (Some((a, b)), Some((c, d))) => a == c && b.eq_ignore_ascii_case(&d),
                        _ => false,
                    }
                };
                assert_eq!(side.verify(&message).is_ok(), same, "{}: {name}: {value:?}", message.name);
            }
        }
    }
}

#[test]
fn no_signed_header_can_go_and_none_can_come_twice() {
    let (side, messages) = recorded();
    for message in &messages {
        let signed: Vec<String> =
            parse(message.request()).unwrap().signed_headers().map(str::to_owned).collect();
        for name in &signed {
            refused(&side, &message.without_header(name), name);
            let value = message.headers.get(name).unwrap().to_str().unwrap().to_owned();
            refused(&side, &message.with_one_more(name, &value), name);
            refused(&side, &message.with_one_more(name, ""), name);
        }
        // What is not signed is nobody's business, except where it must be.
        assert_eq!(side.verify(&message.with_header("x-request-id", "1")), Ok(()), "{}", message.name);
        refused(&side, &message.with_header("x-amz-new", "1"), "x-amz-new");
    }
}

#[test]
fn the_order_of_a_repeated_header_counts() {
    let (side, message) = super::recorded::one("a header sent twice");
    let mut values: Vec<HeaderValue> = message.headers.get_all("x-amz-meta").iter().cloned().collect();
    assert_eq!(values.len(), 3);
    values.reverse();
    let mut turned = message.without_header("x-amz-meta");
    turned.headers.extend(values.into_iter().map(|value| (HeaderName::from_static("x-amz-meta"), value)));
    refused(&side, &turned, "the values in another order");
    // Joined, it is the same list to all who read headers.
    assert_eq!(side.verify(&message.with_header("x-amz-meta", "z,a,m n")), Ok(()));
}

#[test]
fn a_query_may_be_written_in_another_way() {
    let (side, message) = super::recorded::one("untag_resource");
    let old = "tagKeys=b&tagKeys=a&tagKeys=stage%2Fx&tagKeys=with%20space&tagKeys=plus%2B&tagKeys=%C3%A9";
    assert_eq!(message.query, old);
    for (query, same) in [
        ("tagKeys=a&tagKeys=b&tagKeys=%c3%a9&tagKeys=stage/x&tagKeys=with+space&tag%4Beys=plus%2b", true),
        (
            "&tagKeys=b&tagKeys=a&&tagKeys=stage%2Fx&tagKeys=with%20space&tagKeys=plus%2B&tagKeys=%C3%A9&",
            true,
        ),
        ("tagKeys=b&tagKeys=a&tagKeys=stage%2Fx&tagKeys=with%20space&tagKeys=plus+&tagKeys=%C3%A9", false),
        ("tagKeys=b&tagKeys=stage%2Fx&tagKeys=with%20space&tagKeys=plus%2B&tagKeys=%C3%A9", false),
        (
            "tagKeys=b&tagKeys=a&tagKeys=a&tagKeys=stage%2Fx&tagKeys=with%20space&tagKeys=plus%2B&tagKeys=%C3%A9",
            false,
        ),
        (
            "tagKeys=b&tagKeys=a&tagKeys=stage%252Fx&tagKeys=with%20space&tagKeys=plus%2B&tagKeys=%C3%A9",
            false,
        ),
        ("tagkeys=b&tagKeys=a&tagKeys=stage%2Fx&tagKeys=with%20space&tagKeys=plus%2B&tagKeys=%C3%A9", false),
        ("", false),
    ] {
        assert_eq!(side.verify(&message.with_query(query)).is_ok(), same, "{query}");
    }
}
