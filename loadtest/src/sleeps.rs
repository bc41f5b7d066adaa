//! One microVM that is put to sleep again and again while clients call it: every request has one answer, whichever side of a
//! sleep it falls on. The app counts its requests in memory, so an answer that is lost, made twice or forgotten with a sleep shows.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use client::{AUTH_HEADER, Context, EndpointConnection, HttpVersion};
use http::StatusCode;
use http::header::RETRY_AFTER;
use http_body_util::{BodyExt as _, Full};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::image::Image;
use crate::interrupted;
use crate::report::{Latencies, round};
use crate::target::Target;

/// Longest wait for an answer, a wake within it.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Longest pause that an answer may ask for.
const PUT_OFF_MAX: Duration = Duration::from_secs(30);
/// Faults that the report tells in words.
const FAULTS_TOLD_MAX: usize = 10;

/// Options of `loadtest sleeps`.
#[derive(clap::Args)]
pub struct Options {
    /// Image to use; its app answers GET / on port 8080 with {"count": N}, N growing by one with each request.
    #[arg(long)]
    image: Option<String>,
    /// Baseline memory of the image that is built without --image, in MiB.
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    memory: u32,
    /// How often the microVM is put to sleep.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    sleeps: u32,
    /// Clients, each with one request under way at a time; every second one speaks HTTP/2.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    clients: u32,
    /// A client's pause between an answer and the next request, in milliseconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=60_000), value_name = "MS")]
    think: u64,
    /// Time from the end of a suspend to the next one, in milliseconds.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(0..=60_000), value_name = "MS")]
    pause: u64,
}

/// What the clients saw.
#[derive(Default)]
struct Seen {
    counts: BTreeSet<u64>,
    latencies: Latencies,
    answered: u64,
    put_off: u64,
    /// The slowest answer, and where its time went (`Server-Timing`).
    slowest: (Duration, String),
    faults: Vec<String>,
}

impl Seen {
    fn add(&mut self, other: Self) {
        for count in other.counts {
            if !self.counts.insert(count) {
                self.faults.push(format!("two requests were told the count {count}"));
            }
        }
        self.latencies.add(&other.latencies);
        self.answered += other.answered;
        self.put_off += other.put_off;
        if other.slowest.0 > self.slowest.0 {
            self.slowest = other.slowest;
        }
        self.faults.extend(other.faults);
    }
}

#[derive(Serialize)]
pub struct Report {
    pub image: String,
    pub sleeps: u32,
    /// Suspends that gave way to a request, and were asked for again.
    pub given_way: u64,
    pub clients: u32,
    pub answered: u64,
    /// Answers 503 with `Retry-After`.
    pub put_off: u64,
    /// Requests with another answer, without one, or with more than one.
    pub faults: usize,
    /// The first of them in words.
    pub faults_told: Vec<String>,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Where the slowest answer's time went: its `Server-Timing`.
    pub slowest: String,
    pub suspend_p50_ms: f64,
}

impl Report {
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}: {} sleeps with {} clients calling: {} requests answered once, {} put off (503, Retry-After), {} faults\n\
             answers: p50 {:.1} ms, p99 {:.1} ms, slowest {:.1} ms ({}); suspends: p50 {:.1} ms",
            self.image,
            self.sleeps,
            self.clients,
            self.answered,
            self.put_off,
            self.faults,
            self.p50_ms,
            self.p99_ms,
            self.max_ms,
            self.slowest,
            self.suspend_p50_ms
        );
        for fault in &self.faults_told {
            text.push_str(&format!("\n  {fault}"));
        }
        text
    }
}

pub async fn run(data_dir: &Path, options: &Options) -> anyhow::Result<Report> {
    let context = crate::context_of(data_dir)?;
    let image = Image::chosen(&context, options.image.as_deref(), options.memory).await?;
    let ran = tokio::select! {
        ran = with_image(&context, options, &image) => ran,
        interrupted = interrupted() => Err(interrupted),
    };
    let cleaned = image.clean_up(&context).await;
    let report = ran?;
    cleaned?;
    Ok(report)
}

async fn with_image(context: &Context, options: &Options, image: &Image) -> anyhow::Result<Report> {
    let mut target = Target::new(context, &image.name, "/", ANSWER_WAIT)?;
    let microvm = target.run().await?;
    let report = measured(&mut target, options, image, &microvm.microvm_id, &microvm.endpoint).await;
    target.terminate(microvm.microvm_id).await?;
    report
}

async fn measured(
    target: &mut Target,
    options: &Options,
    image: &Image,
    id: &str,
    endpoint: &str,
) -> anyhow::Result<Report> {
    let caller = Caller {
        target: target.clone(),
        endpoint: endpoint.to_owned(),
        token: target.token(id).await?,
        think: Duration::from_millis(options.think),
    };
    let stop = CancellationToken::new();
    // Ends the clients when anything below fails.
    let _stopped = stop.clone().drop_guard();
    let mut clients = JoinSet::new();
    for number in 0..options.clients {
        let version = if number % 2 == 0 { HttpVersion::Http1 } else { HttpVersion::Http2 };
        clients.spawn(caller.clone().call_on(version, stop.clone()));
    }
    let (suspends, given_way) = sleep_again_and_again(target, options, id).await?;
    stop.cancel();
    let mut seen = Seen::default();
    while let Some(one) = clients.join_next().await {
        seen.add(one?);
    }
    caller.check_last(&mut seen).await?;
    let faults = seen.faults.len();
    seen.faults.truncate(FAULTS_TOLD_MAX);
    let [p50_ms, p99_ms, max_ms] = [0.5, 0.99, 1.0].map(|quantile| round(seen.latencies.ms(quantile)));
    Ok(Report {
        image: image.name.clone(),
        sleeps: options.sleeps,
        given_way,
        clients: options.clients,
        answered: seen.answered,
        put_off: seen.put_off,
        faults,
        faults_told: seen.faults,
        p50_ms,
        p99_ms,
        max_ms,
        slowest: seen.slowest.1,
        suspend_p50_ms: round(suspends.ms(0.5)),
    })
}

/// Suspends it as often as wanted; what suspends took, and how many gave way to a request.
async fn sleep_again_and_again(
    target: &mut Target,
    options: &Options,
    id: &str,
) -> anyhow::Result<(Latencies, u64)> {
    let (mut suspends, mut given_way) = (Latencies::default(), 0);
    let bar = ProgressBar::new(u64::from(options.sleeps));
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} sleeps, {eta} left")?);
    let pause = Duration::from_millis(options.pause);
    let deadline = Instant::now() + (ANSWER_WAIT + pause) * options.sleeps;
    while suspends.count() < u64::from(options.sleeps) {
        ensure!(
            Instant::now() < deadline,
            "the microVM does not come to sleep: {given_way} suspends gave way"
        );
        tokio::time::sleep(pause).await;
        let begun = Instant::now();
        match target.suspend(id).await {
            Ok(_) => {
                suspends.record(begun.elapsed());
                bar.inc(1);
            }
            // It wakes for a request that came first.
            Err(status) if status.code() == tonic::Code::FailedPrecondition => given_way += 1,
            Err(status) => return Err(status).context("suspend"),
        }
    }
    bar.finish_and_clear();
    Ok((suspends, given_way))
}

/// One client.
#[derive(Clone)]
struct Caller {
    target: Target,
    endpoint: String,
    token: String,
    think: Duration,
}

/// What one request came to.
enum Answer {
    /// The app's count, and the answer's `Server-Timing`.
    Count(u64, String),
    PutOff(Duration),
}

impl Caller {
    /// Calls until it is told to stop; a request that is under way then has its answer first.
    async fn call_on(self, version: HttpVersion, stop: CancellationToken) -> Seen {
        let mut seen = Seen::default();
        let mut connection = None;
        while !stop.is_cancelled() {
            let begun = Instant::now();
            let answer = tokio::time::timeout(ANSWER_WAIT, self.ask(&mut connection, version)).await;
            let pause = match answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {ANSWER_WAIT:?}")))
            {
                Ok(Answer::Count(count, timing)) => {
                    let latency = begun.elapsed();
                    seen.latencies.record(latency);
                    if latency > seen.slowest.0 {
                        seen.slowest = (latency, timing);
                    }
                    seen.answered += 1;
                    if !seen.counts.insert(count) {
                        seen.faults.push(format!("a client was told the count {count} twice"));
                    }
                    self.think
                }
                Ok(Answer::PutOff(pause)) => {
                    seen.put_off += 1;
                    pause
                }
                Err(error) => {
                    seen.faults.push(format!("{version:?}: {error:#}"));
                    connection = None;
                    self.think
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        seen
    }

    async fn ask(
        &self,
        connection: &mut Option<EndpointConnection>,
        version: HttpVersion,
    ) -> anyhow::Result<Answer> {
        let mut open = match connection.take() {
            Some(open) => open,
            None => self.target.connect(&self.endpoint, version).await?,
        };
        let request = http::Request::get("/").header(AUTH_HEADER, &self.token).body(Full::default())?;
        let (head, body) = open.send(request).await?.into_parts();
        let body = body.collect().await.context("an answer without its end")?.to_bytes();
        *connection = Some(open);
        if head.status == StatusCode::SERVICE_UNAVAILABLE {
            let after = head.headers.get(RETRY_AFTER).context("503 without Retry-After")?;
            let after = Duration::from_secs(after.to_str()?.parse()?);
            return Ok(Answer::PutOff(after.min(PUT_OFF_MAX)));
        }
        ensure!(head.status.is_success(), "{}: {}", head.status, String::from_utf8_lossy(&body));
        let body: serde_json::Value = serde_json::from_slice(&body)?;
        let timing = head.headers.get("server-timing").and_then(|timing| timing.to_str().ok());
        let count = body["count"].as_u64().context("an answer without a count")?;
        Ok(Answer::Count(count, timing.unwrap_or_default().to_owned()))
    }

    /// The app has counted what was answered, and nothing else.
    async fn check_last(&self, seen: &mut Seen) -> anyhow::Result<()> {
        let mut connection = None;
        let last = tokio::time::timeout(ANSWER_WAIT, self.ask(&mut connection, HttpVersion::Http1)).await??;
        let Answer::Count(last, _) = last else { anyhow::bail!("the last request was put off") };
        let missing = (1..last).filter(|count| !seen.counts.contains(count)).count();
        if missing > 0 {
            seen.faults
                .push(format!("{missing} of {last} requests were counted by the app and not answered"));
        }
        if let Some(beyond) = seen.counts.range(last..).next() {
            seen.faults.push(format!("the app counts {last} and has told {beyond} before: it has forgotten"));
        }
        Ok(())
    }
}
