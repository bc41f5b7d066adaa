//! Requests made of right ones by changing bytes: whatever comes, the answer is a refusal in the service's manner or the request
//! passes; nothing panics, no message grows without bound, and no sensitive value comes back.
//!
//! Asks `ASKED` times, see [`aws_cases::fuzz`] for other lengths and seeds.

use aws_cases::fuzz::{Chance, Run};
use aws_cases::{Case, cases};
use aws_model::{Limits, Routed, parse, route};
use serde_json::Value;

/// Requests of a run that has no time set.
const ASKED: u64 = 20_000;
const SECRET: &str = "correct-horse-battery";
const SENSITIVE: [&str; 2] = ["runHookPayload", "environmentVariables"];
const LIMITS: Limits = Limits { body_bytes_max: 1 << 16, run_hook_payload_bytes_max: 4096 };

/// Pieces that parsers stumble over.
const PIECES: [&[u8]; 20] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b",",
    b":",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"\\ud800",
    b"\xff\xfe",
    b"\0",
    b"%",
    b"%00",
    b"&",
    b"=",
    b"/",
    b"9999999999999999999999",
];

fn change(bytes: &mut Vec<u8>, other: &[u8], chance: &mut Chance) {
    for _ in 0..=chance.below(4) {
        let at = chance.below(bytes.len() + 1);
        match chance.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..at, PIECES[chance.below(PIECES.len())].iter().copied())),
            2 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
            3 => {
                let to = at + chance.below(bytes.len() - at + 1);
                let part = bytes[at..to].to_vec();
                let times = 1 + chance.below(40);
                let repeated = part.repeat(times);
                bytes.splice(at..at, repeated.into_iter().take(LIMITS.body_bytes_max));
            }
            4 => {
                let from = chance.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let to = at + chance.below(bytes.len() - at + 1);
                bytes.drain(at..to);
            }
        }
        bytes.truncate(LIMITS.body_bytes_max + 16);
    }
}

fn ask(method: &str, path: &[u8], query: &[u8], body: &[u8]) {
    let (path, query) = (String::from_utf8_lossy(path), String::from_utf8_lossy(query));
    let openly = path.contains(SECRET) || query.contains(SECRET) || holds_secret_openly(body);
    let (service, rejection) = match route(method, &path) {
        Routed::Operation(operation, parameters) => {
            match parse(operation, &parameters, &query, body, &LIMITS) {
                Ok(input) => {
                    let shown = format!("{input:?}");
                    assert!(openly || !shown.contains(SECRET), "{shown}");
                    return;
                }
                Err(rejection) => (operation.service, rejection),
            }
        }
        Routed::Refused(service, rejection) => (service, rejection),
        Routed::NoSuchPath | Routed::NoSuchMethod(_) => return,
    };
    let reply = rejection.reply(service);
    assert!((400..500).contains(&reply.status), "{rejection}");
    let answer: Value = serde_json::from_slice(&reply.body).unwrap();
    assert!(answer.is_object());
    assert!(reply.body.len() <= 1024 + 8 * LIMITS.body_bytes_max, "{} bytes", reply.body.len());
    let told = String::from_utf8_lossy(&reply.body);
    assert!(openly || !told.contains(SECRET), "{told}");
}

/// True when a change moved the secret to where it is none.
fn holds_secret_openly(body: &[u8]) -> bool {
    let Ok(Value::Object(mut members)) = serde_json::from_slice(body) else {
        return false;
    };
    let sensitive = SENSITIVE.map(|name| members.remove(name));
    // Names of variables are no secret.
    let names = sensitive
        .into_iter()
        .flatten()
        .filter_map(|value| Some(value.as_object()?.keys().cloned().collect()));
    let names: Vec<Vec<String>> = names.collect();
    names.concat().concat().contains(SECRET) || Value::Object(members).to_string().contains(SECRET)
}

/// The case with its sensitive values replaced by a text that is looked for in every answer.
fn with_secret(case: &Case) -> Vec<u8> {
    let Some(body) = &case.body else { return Vec::new() };
    let mut body: Value = serde_json::from_str(body).unwrap();
    if let Some(payload) = body.get_mut("runHookPayload") {
        *payload = SECRET.repeat(200).into();
    }
    if let Some(Value::Object(variables)) = body.get_mut("environmentVariables") {
        variables.values_mut().for_each(|value| *value = SECRET.repeat(200).into());
    }
    body.to_string().into_bytes()
}

#[test]
fn changed_requests_are_refused_or_pass() {
    let run = Run::from_environment(ASKED);
    let mut chance = Chance::new(run.seed);
    let cases: Vec<(Case, Vec<u8>)> =
        cases(&LIMITS).into_iter().map(|case| (case.clone(), with_secret(&case))).collect();
    let mut asked = 0_u64;
    while run.goes_on(asked) {
        for _ in 0..100 {
            let (case, body) = &cases[chance.below(cases.len())];
            let (_, other) = &cases[chance.below(cases.len())];
            let (mut path, mut query, mut body) =
                (case.path.clone().into_bytes(), case.query.clone().into_bytes(), body.clone());
            match chance.below(4) {
                0 => change(&mut path, b"/2025-09-09/microvm-images/%3A/versions/1/builds/%", &mut chance),
                1 => change(&mut query, b"maxResults=1&nextToken=%3D&tagKeys=a&State=ACTIVE", &mut chance),
                _ => change(&mut body, other, &mut chance),
            }
            ask(case.method, &path, &query, &body);
            asked += 1;
        }
    }
    println!("{asked} requests from TORPOR_FUZZ_SEED={}", run.seed);
}

#[test]
fn unchanged_secrets_stay_where_they_are() {
    for case in cases(&LIMITS) {
        ask(case.method, case.path.as_bytes(), case.query.as_bytes(), &with_secret(&case));
    }
}
