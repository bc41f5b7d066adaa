//! `torpor curl`: one HTTPS request to a microVM's endpoint, without DNS and without handling tokens by hand.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::{AUTH_HEADER, EndpointClient, HttpVersion};
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;

use super::calls::microvm_id;
use super::microvm::{fetch, mint, single};
use super::{Session, edge_error, input};
use crate::cli::microvm::Curl;
use crate::durations;
use crate::error::{CliError, Kind};
use crate::output;

/// Header that names the guest port.
const PORT_HEADER: &str = "x-aws-proxy-port";
const TOKEN_TTL: Duration = Duration::from_secs(60);
/// Largest body read from a file or standard input.
const BODY_BYTES_MAX: u64 = 256 << 20;

pub async fn run(session: &Session, arguments: Curl) -> Result<(), CliError> {
    let id = microvm_id(session, &arguments.id).await?;
    let mut request = prepare(&arguments)?;
    let token = match &arguments.token {
        Some(token) => token.clone(),
        None => mint(session, &id, vec![single(arguments.port)], TOKEN_TTL)
            .await?
            .auth_token
            .into_values()
            .next()
            .ok_or_else(|| CliError::failed("the scheduler made no token"))?,
    };
    let headers = request.headers_mut();
    let token = HeaderValue::from_str(&token)
        .map_err(|_| CliError::usage("the token holds characters no header may have"))?;
    headers.entry(AUTH_HEADER).or_insert(token).set_sensitive(true);
    headers.entry(PORT_HEADER).or_insert(HeaderValue::from(arguments.port));
    // The endpoint's name is not the microVM's id.
    let host = fetch(session, &id).await?.endpoint;
    let version = if arguments.http2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
    let started = Instant::now();
    let exchange = async {
        let endpoints = EndpointClient::new(&session.context.ca)?;
        let mut connection = endpoints.connect(&session.context.edge, &host, version).await?;
        let response = connection.send(request).await?;
        let first_byte = started.elapsed();
        Ok::<_, CliError>((show(response, &arguments).await?, first_byte))
    };
    let (shown, first_byte) = tokio::time::timeout(arguments.max_time, exchange).await.map_err(|_| {
        let waited = durations::short(arguments.max_time);
        CliError::new(Kind::Timeout, format!("no answer within {waited}"))
            .next(format!("see its state: torpor get {}", arguments.id))
    })??;
    let status = shown.head.status;
    if arguments.verbose {
        output::remark(format_args!(
            "{status}, answer began after {}, took {}",
            durations::short(first_byte),
            durations::short(started.elapsed())
        ));
    }
    if let Some(error) = edge_error::of(session, &id, arguments.port, &shown).await? {
        return Err(error);
    }
    if arguments.fail && status.as_u16() >= 400 {
        return Err(CliError::failed(format!("the endpoint answered {status}")));
    }
    Ok(())
}

fn prepare(arguments: &Curl) -> Result<Request<Full<Bytes>>, CliError> {
    let body = match &arguments.data {
        Some(data) => Some(body(data)?),
        None => None,
    };
    let method = match (&arguments.request, &body) {
        (Some(name), _) => Method::from_bytes(name.as_bytes())
            .map_err(|_| CliError::usage(format!("-X {name}: not an HTTP method")))?,
        (None, Some(_)) => Method::POST,
        (None, None) => Method::GET,
    };
    let path =
        if arguments.path.starts_with('/') { arguments.path.clone() } else { format!("/{}", arguments.path) };
    let mut request = Request::builder().method(method).uri(&path);
    if body.is_some() && !arguments.headers.iter().any(|line| has_name(line, "content-type")) {
        request = request.header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    }
    if !arguments.headers.iter().any(|line| has_name(line, "user-agent")) {
        request = request.header(http::header::USER_AGENT, concat!("torpor/", env!("CARGO_PKG_VERSION")));
    }
    for line in &arguments.headers {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| CliError::usage(format!("-H {line}: must have the form 'Name: value'")))?;
        let name: HeaderName =
            name.trim().parse().map_err(|_| CliError::usage(format!("-H {line}: not a header name")))?;
        request = request.header(name, value.trim());
    }
    request
        .body(Full::new(body.unwrap_or_default()))
        .map_err(|error| CliError::usage(format!("cannot make the request for {path}: {error}")))
}

fn has_name(line: &str, name: &str) -> bool {
    line.split_once(':').is_some_and(|(found, _)| found.trim().eq_ignore_ascii_case(name))
}

fn body(data: &str) -> Result<Bytes, CliError> {
    match data.strip_prefix('@') {
        None => Ok(Bytes::from(data.to_owned())),
        Some(source) => input::read(Path::new(source), BODY_BYTES_MAX)
            .map(Bytes::from)
            .map_err(|error| CliError::usage(format!("-d {data}: {error}"))),
    }
}

/// An answer that was written out.
pub struct Shown {
    pub head: http::response::Parts,
    /// How its body begins, enough for what the edge says itself.
    pub start: Vec<u8>,
}

/// Bytes of a body that are kept in [`Shown`].
const START_BYTES: usize = 256;

/// Writes the answer as it arrives.
async fn show(response: Response<Incoming>, arguments: &Curl) -> Result<Shown, CliError> {
    let mut out: Box<dyn Write> = match arguments.output_file.as_deref() {
        Some(path) if path != Path::new("-") => Box::new(
            std::fs::File::create(path)
                .map_err(|error| CliError::usage(format!("--output-file {}: {error}", path.display())))?,
        ),
        _ => Box::new(std::io::stdout()),
    };
    let (head, mut body) = response.into_parts();
    if arguments.include {
        writeln!(out, "{:?} {}", head.version, head.status)?;
        for (name, value) in &head.headers {
            writeln!(out, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
        }
        writeln!(out)?;
    }
    let mut start = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| CliError::failed(format!("the answer broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            start.extend(data.iter().take(START_BYTES - start.len()));
            out.write_all(&data)?;
            out.flush()?;
        }
    }
    Ok(Shown { head, start })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn arguments(line: &[&str]) -> Curl {
        let line = ["torpor", "curl", "id"].iter().chain(line);
        match crate::cli::Cli::parse_from(line).command {
            crate::cli::Command::Curl(arguments) => arguments,
            other => panic!("parsed {other:?}"),
        }
    }

    #[test]
    fn requests_follow_curl() {
        let plain = prepare(&arguments(&[])).unwrap();
        assert_eq!((plain.method(), plain.uri().path()), (&Method::GET, "/"));
        let post = prepare(&arguments(&["items?a=1", "-d", "x=1", "-H", "X-A: b"])).unwrap();
        assert_eq!((post.method(), post.uri().to_string().as_str()), (&Method::POST, "/items?a=1"));
        assert_eq!(post.headers()["x-a"], "b");
        assert_eq!(post.headers()["content-type"], "application/x-www-form-urlencoded");
        let json = prepare(&arguments(&["-d", "{}", "-H", "Content-Type: application/json"])).unwrap();
        assert_eq!(json.headers().get_all("content-type").iter().count(), 1);
        for wrong in [["-H", "no colon"], ["-X", "BAD METHOD"], ["-d", "@/does/not/exist"]] {
            assert_eq!(prepare(&arguments(&wrong)).expect_err("wrong").kind, Kind::Usage, "{wrong:?}");
        }
    }
}
