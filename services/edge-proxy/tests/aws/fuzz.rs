//! Requests that were good once, changed at random: whatever comes of them, it is never the server's fault. Sends `SENT`
//! requests, see [`aws_cases::fuzz`] for other lengths and seeds.

use std::time::Duration;

use aws_cases::fuzz::{Chance, Run};
use aws_cases::{Case, cases};
use aws_model::{Limits, encode};
use serde_json::{Map, Value};

use crate::constraints::{nothing_is_found, target};
use crate::hostile::raw;
use crate::world::{World, signer};

/// Requests of a run that has no time set.
const SENT: u64 = 3000;
/// What this process may grow by, in bytes.
const GROWTH_MAX: u64 = 256 << 20;

const TEXTS: [&str; 16] = [
    "",
    "a",
    "*",
    "arn:aws:lambda:us-east-1:000000000000:microvm-image:a",
    "arn:aws:lambda:us-east-1:111111111111:microvm-image:a",
    "arn:aws:lambda:us-east-1:000000000000:microvm-image/a",
    "arn:aws:iam::000000000000:role/a",
    "arn:",
    "../..",
    "%00%ff",
    "\u{0}",
    "\u{1f980}\u{202e}",
    "null",
    "1.0",
    "-1",
    "9999999999999999999999999999",
];

fn value(chance: &mut Chance, depth: usize) -> Value {
    match chance.below(if depth == 0 { 6 } else { 8 }) {
        0 => Value::Null,
        1 => chance.one_in(2).into(),
        2 => (chance.next() as i64 >> chance.below(64)).into(),
        3 => Value::from(f64::from_bits(chance.next())),
        4 => chance.of(&TEXTS).into(),
        5 => "x".repeat(chance.below(5000)).into(),
        6 => (0..chance.below(5)).map(|_| value(chance, depth - 1)).collect(),
        _ => {
            let member = |chance: &mut Chance| (chance.of(&TEXTS).to_owned(), value(chance, depth - 1));
            Value::Object((0..chance.below(5)).map(|_| member(chance)).collect::<Map<_, _>>())
        }
    }
}

/// Changes something somewhere in a value.
fn change(chance: &mut Chance, at: &mut Value) {
    let inner: Vec<&mut Value> = match at {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(members) => members.values_mut().collect(),
        _ => Vec::new(),
    };
    let count = inner.len();
    if count > 0 && !chance.one_in(4) {
        let chosen = chance.below(count);
        return change(chance, inner.into_iter().nth(chosen).unwrap());
    }
    match at {
        Value::Object(members) if chance.one_in(2) => {
            let name = members.keys().nth(chance.below(members.len())).cloned();
            match name {
                Some(name) if chance.one_in(2) => drop(members.remove(&name)),
                _ => drop(members.insert(chance.of(&TEXTS).to_owned(), value(chance, 3))),
            }
        }
        Value::Array(items) if chance.one_in(2) => items.push(value(chance, 3)),
        other => *other = value(chance, 4),
    }
}

fn disturb(chance: &mut Chance, bytes: &mut Vec<u8>) {
    for _ in 0..=chance.below(4) {
        let at = chance.below(bytes.len() + 1);
        match chance.below(5) {
            0 if at < bytes.len() => bytes[at] = chance.next() as u8,
            1 => bytes.truncate(at),
            2 => bytes.insert(at, chance.next() as u8),
            3 if at < bytes.len() => {
                let end = at + chance.below(bytes.len() - at);
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => bytes.splice(at..at, *b"[[[[{{{{\"\\").for_each(drop),
        }
    }
}

fn changed_target(chance: &mut Chance, case: &Case) -> String {
    let target = target(case);
    match chance.below(6) {
        0 => {
            let text = encode(chance.of(&TEXTS));
            let cut = target.rfind('/').unwrap();
            format!("{}/{text}", &target[..cut])
        }
        1 => {
            let separator = if target.contains('?') { '&' } else { '?' };
            let names = ["maxResults", "nextToken", "nameFilter", "State", "Marker", "tagKeys", "x"];
            let (name, text) = (chance.of(&names), encode(chance.of(&TEXTS)));
            format!("{target}{separator}{name}={text}")
        }
        2 => {
            let mut bytes = target.clone().into_bytes();
            disturb(chance, &mut bytes);
            let kept: String = bytes
                .into_iter()
                .filter(|byte| byte.is_ascii_graphic() && !b"#<>\"\\^`{|}".contains(byte))
                .map(char::from)
                .collect();
            format!("/{}", kept.trim_start_matches('/'))
        }
        _ => target,
    }
}

fn changed_body(chance: &mut Chance, case: &Case) -> Vec<u8> {
    let body = case.body.clone().unwrap_or_default();
    if chance.one_in(3) {
        let mut bytes = body.into_bytes();
        disturb(chance, &mut bytes);
        return bytes;
    }
    let mut value: Value = serde_json::from_str(&body).unwrap_or_else(|_| Value::Object(Map::new()));
    for _ in 0..=chance.below(3) {
        change(chance, &mut value);
    }
    value.to_string().into_bytes()
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_the_servers_fault() {
    let run = Run::from_environment(SENT);
    let world = World::start().await;
    nothing_is_found(&world);
    let seeds: Vec<Case> =
        cases(&Limits::default()).into_iter().filter(|case| case.valid && case.plain_path).collect();
    let mut chance = Chance::new(run.seed);
    let mut connections = [world.connection(), world.http2()];
    let (mut sent, mut statuses) = (0_u64, std::collections::BTreeMap::<u16, u64>::new());
    let mut before = None;
    while run.goes_on(sent) {
        let round = chance.seed();
        let case = &seeds[chance.below(seeds.len())];
        let (target, body) = (changed_target(&mut chance, case), changed_body(&mut chance, case));
        let mut request = signer().request(case.method, &target, body.clone());
        let what = format!("seed {round}: {} {target} {}", case.method, String::from_utf8_lossy(&body));
        let status = if chance.one_in(16) {
            let mut bytes = format!("{} {target} HTTP/1.1\r\n", case.method).into_bytes();
            for (name, value) in request.headers() {
                bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
            }
            bytes.extend(format!("connection: close\r\ncontent-length: {}\r\n\r\n", body.len()).bytes());
            bytes.extend(&body);
            let head = bytes.len() - body.len();
            let mut start = bytes.split_off(0);
            let rest = start.split_off(head);
            disturb(&mut chance, &mut start);
            // Whatever it became, it has an end.
            start.extend(rest);
            start.extend(b"\r\n\r\n\r\n\r\n");
            raw_or_closed(&world, &start).await
        } else {
            if chance.one_in(8) {
                let text = chance.of(&["", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=a/b/c/d/e"]);
                request.headers_mut().insert("authorization", text.parse().unwrap());
            }
            let connection = &mut connections[chance.below(2)];
            Some(connection.send(request).await.status)
        };
        let fine = status.is_none_or(|status| (400..500).contains(&status));
        assert!(fine, "{status:?} for {what}");
        *statuses.entry(status.unwrap_or(0)).or_default() += 1;
        sent += 1;
        if sent.is_multiple_of(64) {
            world.scheduler.take();
            world.image_builder.take();
        }
        // Once everything is warm.
        if sent == 1000 {
            before = Some(resident_bytes());
        }
    }
    println!("{sent} requests from seed {}: {statuses:?}", run.seed);
    if let Some(before) = before {
        let growth = resident_bytes().saturating_sub(before);
        assert!(growth < GROWTH_MAX, "grew by {growth} bytes");
    }
}

/// Sends bytes; when the edge waits for more of them, hangs up.
async fn raw_or_closed(world: &World, bytes: &[u8]) -> Option<u16> {
    let answered = tokio::time::timeout(Duration::from_millis(300), raw(world, bytes)).await;
    answered.ok().flatten()
}
