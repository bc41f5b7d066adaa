//! Arguments of the microVM commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::durations::parse;

/// Arguments of `torpor run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torpor run web
  torpor run web --idle 60s --suspended 2h       sleeps after a minute, ends after two hours asleep
  torpor run web --idle 60s --awake-while stream --awake-while cpu=20
  torpor run web --checkpoint 1m                 loses a minute or two of work with its host, not the session
  torpor run web --token-ttl 30m                 with a token for port 8080
  torpor run web --shell                         for torpor shell
  torpor run web -o json --no-wait               for scripts")]
pub struct Run {
    /// Name or ARN of the image.
    pub image: String,
    /// Version; default: the newest active one.
    #[arg(long)]
    pub version: Option<String>,
    /// Put it to sleep after this long without traffic; default: never by itself.
    #[arg(long, value_name = "TIME", value_parser = parse)]
    pub idle: Option<Duration>,
    /// With --idle: end it after this long asleep.
    #[arg(long, value_name = "TIME", value_parser = parse, default_value = "1h", requires = "idle")]
    pub suspended: Duration,
    /// With --idle: let no request wake it.
    #[arg(long, requires = "idle")]
    pub no_auto_resume: bool,
    /// With --idle: also stay awake while a connection is open (stream), a shell is open (shell), or the CPU use is at
    /// least so many percent of one CPU (cpu=N); looked at when the idle time has passed. May be repeated.
    #[arg(long, value_name = "WHAT", requires = "idle")]
    pub awake_while: Vec<AwakeWhile>,
    /// Make a recovery point this often while it runs and does something, 5s to 1h: when its host is lost, it goes on
    /// elsewhere from the latest; default: never, and what ran on a lost host has ended.
    #[arg(long, value_name = "TIME", value_parser = parse)]
    pub checkpoint: Option<Duration>,
    /// Longest life, running and asleep together; default: 8h.
    #[arg(long, value_name = "TIME", value_parser = parse)]
    pub max_duration: Option<Duration>,
    /// Text for the run hook.
    #[arg(long, value_name = "TEXT")]
    pub payload: Option<String>,
    /// Also make a token for port 8080 that lasts this long.
    #[arg(long, value_name = "TIME", value_parser = parse)]
    pub token_ttl: Option<Duration>,
    /// Return at once instead of waiting until it runs.
    #[arg(long)]
    pub no_wait: bool,
    /// Role the app acts as (ARN).
    #[arg(long, value_name = "ARN")]
    pub execution_role: Option<String>,
    /// Let shells in beside requests: the connectors HTTP_INGRESS and SHELL_INGRESS; see torpor shell.
    #[arg(long, conflicts_with = "ingress")]
    pub shell: bool,
    /// Ingress connector (ARN); may be repeated.
    #[arg(long, value_name = "ARN")]
    pub ingress: Vec<String>,
    /// Egress connector (ARN); may be repeated.
    #[arg(long, value_name = "ARN")]
    pub egress: Vec<String>,
    /// Idempotency token; default: a fresh one.
    #[arg(long, value_name = "TOKEN")]
    pub client_token: Option<String>,
}

/// What keeps a microVM awake beside traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AwakeWhile {
    Stream,
    Shell,
    /// Percent of one CPU.
    Cpu(u32),
}

impl std::str::FromStr for AwakeWhile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stream" => Ok(Self::Stream),
            "shell" => Ok(Self::Shell),
            _ => {
                let percent = text.strip_prefix("cpu=").and_then(|percent| percent.parse().ok());
                percent.map(Self::Cpu).ok_or_else(|| "must be stream, shell or cpu=N".to_owned())
            }
        }
    }
}

/// Arguments of `torpor awake`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torpor awake ID --for 30m      no sleep by itself for half an hour from now
  torpor awake ID --release      as its idle policy has it again

It keeps a running microVM from falling asleep by itself. It wakes none that sleeps,
does not outlive its longest life, and ends when the microVM is suspended by torpor
suspend or a drain. Of two, the longer counts. Apps have the same, see the README.")]
pub struct Awake {
    /// Id or a unique prefix of it.
    pub id: String,
    /// How long from now, 1s to 8h.
    #[arg(long = "for", value_name = "TIME", value_parser = parse, required_unless_present = "release")]
    pub duration: Option<Duration>,
    /// Let it sleep again.
    #[arg(long, conflicts_with = "duration")]
    pub release: bool,
}

/// Arguments of `torpor checkpoint`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torpor checkpoint ID             when it is whole on its host: it is on its way to S3
  torpor checkpoint ID --wait      when S3 has it: it survives the loss of its host

A running microVM stands still for a moment and runs on. From its first point on it
goes back to its latest snapshot when its host or its engine is lost, instead of
ending, whether it was launched with --checkpoint or not.")]
pub struct Checkpoint {
    /// Id or a unique prefix of it.
    pub id: String,
    /// Wait until S3 has it.
    #[arg(long)]
    pub wait: bool,
}

/// Arguments of `torpor list`.
#[derive(Debug, Args)]
pub struct List {
    /// Only those of this image (name or ARN).
    #[arg(long)]
    pub image: Option<String>,
    /// Only those of this version.
    #[arg(long, requires = "image")]
    pub version: Option<String>,
    /// Also those that have ended.
    #[arg(short, long)]
    pub all: bool,
}

/// Arguments of `torpor usage`.
#[derive(Debug, Args)]
pub struct Usage {
    /// What each row is of. Tags are those that images have now; by microVM it is
    /// all that those used whose records are kept, whatever the days.
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub by: UsageBy,
    /// How many days, today (UTC) and those before it.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=92))]
    pub days: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum UsageBy {
    #[default]
    Day,
    Image,
    Tag,
    Microvm,
}

/// One microVM.
#[derive(Debug, Args)]
pub struct One {
    /// Id or a unique prefix of it.
    pub id: String,
}

/// Several microVMs.
#[derive(Debug, Args)]
pub struct Some {
    /// Ids or unique prefixes of them.
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
}

/// Arguments of `torpor token`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  curl --cacert \"$TORPOR_CA\" -H \"X-aws-proxy-auth: $(torpor token ID)\" URL
  torpor token ID --path /api --method GET       for GET requests to /api and /api/..., not /apix
  torpor token revoke ID                         every token so far opens nothing any more

--path names paths as they stand in a URL. With it the edge refuses a request whose path
could be read in two ways: with empty, \".\" or \"..\" segments, a backslash, %2e, %2f or
%5c. --method GET opens no HEAD; a WebSocket counts as GET."
)]
pub struct Token {
    #[command(subcommand)]
    pub command: Option<TokenCommand>,
    /// Id or a unique prefix of it.
    #[arg(required = true)]
    pub id: Option<String>,
    /// Port it opens: N, FIRST-LAST or all; may be repeated.
    #[arg(short, long = "port", value_name = "PORT", default_value = "8080")]
    pub ports: Vec<String>,
    /// Path it opens, with all that lies under it; may be repeated; default: every path.
    #[arg(long = "path", value_name = "PATH")]
    pub paths: Vec<String>,
    /// Method it opens, GET for example; may be repeated; default: every method.
    #[arg(long = "method", value_name = "METHOD", value_parser = capitals)]
    pub methods: Vec<String>,
    /// How long it lasts, 1m to 60m.
    #[arg(long, value_name = "TIME", value_parser = parse, default_value = "30m")]
    pub ttl: Duration,
}

fn capitals(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(text.to_ascii_uppercase())
}

/// What `torpor token` does besides making one.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make every token worthless that was made for a microVM so far.
    #[command(after_help = "\
Examples:
  torpor token revoke ID
  torpor token ID                                a new one

Tokens of shells count too. Once this command is done, edges refuse the old tokens
like bad ones, as soon as the news has reached them: within a second, or when an edge
that has lost the scheduler finds it again. It also closes the WebSockets and shells
that were opened with the old tokens; requests that are being answered end as usual.")]
    Revoke(One),
}

/// Arguments of `torpor logs`.
#[derive(Debug, Args)]
pub struct Logs {
    /// Id or a unique prefix of it.
    pub id: String,
    /// Wait for more until the microVM ends.
    #[arg(short, long)]
    pub follow: bool,
    /// Show when each line was written.
    #[arg(short, long)]
    pub timestamps: bool,
}

/// Arguments of `torpor curl`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torpor curl ID /
  torpor curl ID /items -X POST -H 'content-type: application/json' -d '{\"a\": 1}'
  torpor curl ID /upload -d @file --port 9000 -i
  torpor curl ID /report.pdf -O report.pdf

It makes a token for the port, connects to the edge whatever DNS says, and checks
the edge's certificate against the fleet's CA. Like curl it succeeds whatever status
the app answers with; --fail makes a status of 400 and above an error. What the edge
answers itself, because nothing reached the app, is an error with its reason.")]
pub struct Curl {
    /// Id or a unique prefix of it.
    pub id: String,
    /// Path with its query, "/" when left out.
    #[arg(default_value = "/")]
    pub path: String,
    /// Method; default: GET, or POST with --data.
    #[arg(short = 'X', long, value_name = "METHOD")]
    pub request: Option<String>,
    /// Body; @FILE reads a file, @- standard input.
    #[arg(short, long, value_name = "DATA")]
    pub data: Option<String>,
    /// Header line, "Name: value"; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "LINE")]
    pub headers: Vec<String>,
    /// Write the answer to a file instead of standard output.
    #[arg(short = 'O', long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
    /// Show the status line and headers too.
    #[arg(short, long)]
    pub include: bool,
    /// Make a status of 400 and above a failure.
    #[arg(short, long)]
    pub fail: bool,
    /// Guest port.
    #[arg(short, long, default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Speak HTTP/1.1.
    #[arg(long = "http1.1")]
    pub http1: bool,
    /// Speak HTTP/2.
    #[arg(long = "http2", conflicts_with = "http1")]
    pub http2: bool,
    /// Use this token instead of making one.
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Longest wait for the answer.
    #[arg(short, long, value_name = "TIME", value_parser = parse, default_value = "60s")]
    pub max_time: Duration,
    /// Afterwards say on standard error how long it took.
    #[arg(short, long)]
    pub verbose: bool,
}

/// Arguments of `torpor open`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torpor open ID                         print a link, and open it where there is a display
  torpor open ID --path /docs --for 1h
  torpor open ID --port 9000 --print     only print it
  torpor open ID --domain app.example.com

A browser cannot send tokens. The link works once, within a minute, and gives the browser
that follows it a cookie for this microVM and port. Whoever has the link before you has the
session: do not post it. The session ends after --for, when the microVM ends, or with
torpor token revoke ID. One browser has one session per microVM, and the app never sees
its cookie. Other sites' pages cannot use it: requests that change something and
WebSockets must come from the app's own pages.

The browser must find the endpoint's name and trust the certificate of the edge. Under
torpor up names lie under localhost, which browsers know, and the certificate is the
fleet's own: torpor says how to trust it.")]
pub struct Open {
    /// Id or a unique prefix of it.
    pub id: String,
    /// Guest port that the browser reaches.
    #[arg(short, long, default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Where the link leads, path and query.
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub path: String,
    /// How long the session lasts, 1m to 12h.
    #[arg(long = "for", value_name = "TIME", value_parser = parse, default_value = "12h")]
    pub session: Duration,
    /// Own domain that the link and the session are for (see torpor domain); default: the endpoint's name.
    #[arg(long, value_name = "NAME")]
    pub domain: Option<String>,
    /// Only print the link, whatever the display.
    #[arg(long)]
    pub print: bool,
}

/// Arguments of `torpor shell`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torpor run web --shell                 start a microVM that lets shells in
  torpor shell ID
  echo 'ps aux' | torpor shell ID        from a script

It is a root shell in the app's container, with the app's files, environment and
working directory. Processes that it leaves behind go on; a shell ends with its
connection. When the connection breaks, torpor connects again, after pauses that
grow, and opens a new shell.

At the beginning of a line ~. leaves a shell that hangs, and ~~ types a tilde.

Where standard input is not a terminal, its lines are typed into the shell, and
after the last one \"exit\". The output is a terminal's: prompts and echo are in it.
The exit code is 0 once the shell has exited, whatever its own exit code.")]
pub struct Shell {
    /// Id or a unique prefix of it.
    pub id: String,
    /// Longest wait until the shell is open.
    #[arg(short, long, value_name = "TIME", value_parser = parse, default_value = "60s")]
    pub max_time: Duration,
}
