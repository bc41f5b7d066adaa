//! `torpor curl`: one HTTPS request to a microVM's endpoint, without DNS and
//! without handling tokens by hand.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::{AUTH_HEADER, EndpointClient, HttpVersion};
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;

use super::Session;
use super::calls::microvm_id;
use super::microvm::{fetch, mint, single};
use crate::cli::microvm::Curl;
use crate::durations;
use crate::error::{CliError, Kind};
use crate::output;

/// Header that names the guest port.
const PORT_HEADER: &str = "x-aws-proxy-port";
/// Life of the token made for the one request.
const TOKEN_TTL: Duration = Duration::from_secs(60);
/// Largest body read from a file or standard input.
const BODY_BYTES_MAX: u64 = 256 << 20;

/// Runs the command.
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
        .map_err(|_| CliError::new(Kind::Usage, "the token holds characters no header may have"))?;
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
        let status = response.status();
        show(response, arguments.include).await?;
        Ok::<_, CliError>((status, first_byte))
    };
    let (status, first_byte) = tokio::time::timeout(arguments.max_time, exchange).await.map_err(|_| {
        let waited = durations::short(arguments.max_time);
        CliError::new(Kind::Timeout, format!("no answer within {waited}"))
            .next(format!("see its state: torpor get {}", arguments.id))
    })??;
    if arguments.verbose {
        output::remark(format_args!(
            "{status}, answer began after {}, took {}",
            durations::short(first_byte),
            durations::short(started.elapsed())
        ));
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
    let usage = |message: String| CliError::new(Kind::Usage, message);
    let method = match (&arguments.request, &body) {
        (Some(name), _) => Method::from_bytes(name.as_bytes())
            .map_err(|_| usage(format!("-X {name}: not an HTTP method")))?,
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
            .ok_or_else(|| usage(format!("-H {line}: must have the form 'Name: value'")))?;
        let name: HeaderName =
            name.trim().parse().map_err(|_| usage(format!("-H {line}: not a header name")))?;
        request = request.header(name, value.trim());
    }
    request
        .body(Full::new(body.unwrap_or_default()))
        .map_err(|error| usage(format!("cannot make the request for {path}: {error}")))
}

fn has_name(line: &str, name: &str) -> bool {
    line.split_once(':').is_some_and(|(found, _)| found.trim().eq_ignore_ascii_case(name))
}

fn body(data: &str) -> Result<Bytes, CliError> {
    let Some(source) = data.strip_prefix('@') else {
        return Ok(Bytes::from(data.to_owned()));
    };
    let mut bytes = Vec::new();
    let read = match source {
        "-" => std::io::stdin().lock().take(BODY_BYTES_MAX + 1).read_to_end(&mut bytes),
        path => {
            std::fs::File::open(path).and_then(|file| file.take(BODY_BYTES_MAX + 1).read_to_end(&mut bytes))
        }
    };
    let count = read.map_err(|error| CliError::new(Kind::Usage, format!("-d {data}: {error}")))?;
    if count as u64 > BODY_BYTES_MAX {
        return Err(CliError::new(Kind::Usage, format!("-d {data}: over {}", output::bytes(BODY_BYTES_MAX))));
    }
    Ok(Bytes::from(bytes))
}

/// Writes the answer as it arrives.
async fn show(response: Response<Incoming>, include: bool) -> Result<(), CliError> {
    let mut stdout = std::io::stdout();
    let (parts, mut body) = response.into_parts();
    if include {
        writeln!(stdout, "{:?} {}", parts.version, parts.status)?;
        for (name, value) in &parts.headers {
            writeln!(stdout, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
        }
        writeln!(stdout)?;
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| CliError::failed(format!("the answer broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            stdout.write_all(&data)?;
            stdout.flush()?;
        }
    }
    Ok(())
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
