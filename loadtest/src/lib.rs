//! Load tests of a running fleet: programs that measure, never tests that pass or
//! fail. Open loop: work starts when its time has come, whether or not earlier
//! work has finished, and a latency counts from the moment the work was due.
//! `chaos` is the exception: it judges, and its sessions wait for their answers.
//! `checkpoints`, `neighbours` and `records` measure, and say which bars were missed.

mod api;
mod bare;
mod chance;
mod chaos;
mod checkpoints;
mod endpoint;
mod hosts;
mod image;
mod lifecycle;
mod neighbours;
mod pace;
mod proxy;
mod records;
mod report;
mod simulate;
mod sleeps;
mod target;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Load tests for Torpor.
///
/// They need root, and a fleet on this machine: start one with
/// `torpor up --detach`.
#[derive(Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Data directory of the fleet.
    #[arg(long, global = true, env = "TORPOR_DATA_DIR", default_value = client::DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// How to print the result.
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}

impl Output {
    fn print<R: serde::Serialize>(self, report: &R, table: impl Fn(&R) -> String) -> anyhow::Result<()> {
        match self {
            Self::Json => println!("{}", serde_json::to_string_pretty(report)?),
            Self::Table => println!("{}", table(report)),
        }
        Ok(())
    }
}

#[derive(Subcommand)]
enum Command {
    /// Launch, suspend and wake through the fleet, beside the bare engine.
    ///
    /// Cycles alternate between the fleet (API, edge, host-agent) and libs/vmm
    /// driven directly on the same snapshot, in the same run, so that the ratios
    /// hold on a noisy machine. Without --image, an image of a small web app is
    /// built first and deleted afterwards.
    Lifecycle(lifecycle::Options),
    /// Requests around the sleeps of one microVM: does each have its one answer?
    ///
    /// Clients call a microVM all the time while it is suspended again and again;
    /// their requests call suspends off, wait for wakes, or meet it awake. The app
    /// counts in memory, so that a request that is lost or carried out twice, and a
    /// sleep that loses memory, show as faults. 503 with Retry-After is an answer.
    /// Without --image, an image of a small web app is built first and deleted
    /// afterwards.
    Sleeps(sleeps::Options),
    /// Recovery points of a microVM whose app writes all the time: pauses, uploads, and how old the newest is.
    ///
    /// The app writes at a fixed rate and is called at another; points are asked for at
    /// fixed times. Then a second microVM makes points by itself, and the age of the newest
    /// that S3 has is sampled: what would be undone, were its host lost then. An image is
    /// made for the run; it and its microVMs are removed afterwards, also after Ctrl-C.
    ///
    /// Exits with 1 when the guest stands still for longer than --pause-max (p50), a point is
    /// older than two intervals, or a call of the app fails.
    Checkpoints(checkpoints::Options),
    /// One microVM takes all it can get of disk, connections, ARP, log and DNS: what do its neighbours feel?
    ///
    /// A neighbour on the same host is called at a fixed rate before and while the
    /// hostile one does its worst, a third one only runs. The baseline is what the neighbour
    /// feels when the hostile one does nothing but use its processor. An image and a connector
    /// are made for the run; they and the microVMs are removed afterwards, also after Ctrl-C.
    ///
    /// Exits with 1 when the neighbour's p99 rises by more than --factor, a call of it fails,
    /// the host is not READY, or another microVM does not run on.
    Neighbours(neighbours::Options),
    /// MicroVMs that come and go in front of simulated hosts: do their records have a bound?
    ///
    /// The fleet's scheduler and etcd are real; the hosts are simulated by this program and
    /// answer at once. MicroVMs are launched at a fixed rate, each followed by the end of
    /// the oldest, while the number of records, etcd's size and alarms are sampled. An image
    /// is made for the run; it, what was launched and the hosts are removed afterwards, also
    /// after Ctrl-C. Records of what ended stay for as long as the scheduler keeps them.
    ///
    /// Exits with 1 when the last third of the run has more than a tenth above the middle one,
    /// or an alarm was raised.
    Records(records::Options),
    /// Calls of the AWS-compatible API, in front of simulated hosts.
    ///
    /// The fleet's edge, scheduler, image-builder and etcd are real, signatures
    /// are checked and every request is signed anew; the hosts are simulated by
    /// this program and answer at once, so that the figures are the front's. They
    /// share the machine's cores with the fleet and the load.
    ///
    /// Calls are due at a fixed rate: GetMicrovm over REST and gRPC in turn, then
    /// GetMicrovm, ListMicrovms and RunMicrovm at half and at the full rate. An
    /// image is made for the run; it, what was launched and the hosts are removed
    /// afterwards, also after Ctrl-C. Use a fleet of its own: while this runs,
    /// other images' bakes may go to simulated hosts.
    Api(api::Options),
    /// The edge's throughput and latency, beside nginx and HAProxy.
    ///
    /// All three terminate TLS with the fleet's certificate in front of the same
    /// plain local app, in the same run, with the same connections, worker threads
    /// and processors. The edge also checks a token and goes through a tunnel to a
    /// host, which is simulated: this program serves the host's end of the tunnels
    /// and the app, each in a process of its own. nginx and HAProxy are started as
    /// children with settings of the run's own, on loopback.
    ///
    /// An image is made for the run; it, its microVM, the host and the proxies are
    /// removed afterwards, also after Ctrl-C.
    Proxy(proxy::Options),
    /// Whole cells in one thread each, with faults, driven by seeds: a checker looks for what must never happen.
    ///
    /// Needs no fleet and no root. etcd, S3, network, machines, engines and
    /// clocks are simulated. The schedulers are the product's own, with their
    /// calls, records and elections; so are the hosts' reports, leases, fences,
    /// state tables, journals and recovery, and the callers' client. Stand-ins
    /// carry out what a host is asked for, in the same order of durable steps,
    /// and take an endpoint's requests.
    ///
    /// Prints how many seeds broke an invariant, and for each of them the
    /// command that repeats it with the fewest faults. Exits with 1 when there
    /// is one.
    Simulate(simulate::Options),
    /// Faults on a fleet under load: which invariants held, and how long recovery took.
    ///
    /// Sessions launch microVMs of a counting app, ask them, put them to sleep and wake
    /// them, while one process of the fleet after the other is killed (kill), stands
    /// still for 12 to 35 seconds and then goes on where it was (stop), or has its packets
    /// dropped for 12 seconds (partition: schedulers, edges, members of etcd); S3 stands
    /// still four fifths of the time (slow-s3), a file takes what a host's disk has
    /// free (full-disk), or a host is lost: its agent stands still for 35 seconds and its
    /// engines are killed (lose). The seed says which and when. Every fault is undone, also
    /// after Ctrl-C and when this program is killed; only processes that torpor up started
    /// in this data directory, and engines that run in it, are signalled or cut off.
    ///
    /// Upkeep is asked for by name, and nothing may fail for it: torpor certs rotate
    /// (rotate); a scheduler, edge, image-builder or host-agent is ended by SIGTERM and
    /// started again (restart); one host after the other is drained, its host-agent started
    /// anew, and the host taken back (upgrade).
    ///
    /// Not covered: packets lost between some parts only, partitions of hosts and
    /// image-builders, and clock steps, because a machine's processes share its wall clock.
    ///
    /// Exits with 1 when an invariant is broken. Use a fleet of its own:
    /// torpor up --detach --hosts 3 --schedulers 2 --edges 2 --builders 2 --etcd-members 3
    Chaos(chaos::Options),
    /// Undoes the faults of `chaos` when that is gone.
    #[command(hide = true)]
    ChaosGuard,
    /// The app of `proxy`.
    #[command(hide = true)]
    ProxyApp,
    /// The host's end of the tunnels of `proxy`.
    #[command(hide = true)]
    ProxyHost(proxy::HostOptions),
}

/// Runs the command line that the process was started with.
///
/// # Errors
/// What kept it from measuring.
pub fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Command::Simulate(options) = &cli.command {
        anyhow::ensure!(simulate::simulate(options, cli.output == Output::Json)?, "an invariant was broken");
        return Ok(());
    }
    let division = match &cli.command {
        Command::Proxy(options) => options.divide()?,
        _ => None,
    };
    let mut builder = match cli.command {
        Command::Lifecycle(_)
        | Command::Sleeps(_)
        | Command::Checkpoints(_)
        | Command::Neighbours(_)
        | Command::Chaos(_)
        | Command::ProxyApp
        | Command::ProxyHost(_) => runtime::Builder::new_multi_thread(),
        // One processor is left to the load: threads would only hand it to each other.
        Command::Proxy(_) if std::thread::available_parallelism()?.get() == 1 => {
            runtime::Builder::new_current_thread()
        }
        Command::Proxy(_) => runtime::Builder::new_multi_thread(),
        // One thread leaves more of the machine to the fleet that is measured:
        // nothing of ours wakes another thread.
        Command::Api(_) | Command::Records(_) | Command::Simulate(_) | Command::ChaosGuard => {
            runtime::Builder::new_current_thread()
        }
    };
    builder.enable_all().build()?.block_on(run(cli, division))
}

async fn run(cli: Cli, division: Option<proxy::Division>) -> anyhow::Result<()> {
    match cli.command {
        Command::Lifecycle(options) => {
            let report = lifecycle::run(&cli.data_dir, &options).await?;
            cli.output.print(&report, report::Report::table)?;
        }
        Command::Sleeps(options) => {
            let report = sleeps::run(&cli.data_dir, &options).await?;
            cli.output.print(&report, sleeps::Report::table)?;
            anyhow::ensure!(report.faults == 0, "{} faults", report.faults);
        }
        Command::Checkpoints(options) => {
            let report = checkpoints::run(&cli.data_dir, &options).await?;
            cli.output.print(&report, checkpoints::Report::table)?;
            missed(&report.broken())?;
        }
        Command::Neighbours(options) => {
            let report = neighbours::run(&cli.data_dir, &options).await?;
            cli.output.print(&report, neighbours::Report::table)?;
            missed(&report.broken())?;
        }
        Command::Records(options) => {
            let report = records::run(&cli.data_dir, &options).await?;
            cli.output.print(&report, records::Report::table)?;
            missed(&report.broken())?;
        }
        Command::Api(options) => {
            let report = api::run(&cli.data_dir, &options).await?;
            cli.output.print(&report, api::Report::table)?;
        }
        Command::Proxy(options) => {
            let report = proxy::run(&cli.data_dir, &options, division.as_ref()).await?;
            cli.output.print(&report, proxy::Report::table)?;
        }
        Command::Simulate(_) => {}
        Command::Chaos(options) => {
            let (report, undone) = chaos::run(&cli.data_dir, &options).await?;
            cli.output.print(&report, chaos::Report::table)?;
            undone?;
            let broken = report.broken();
            anyhow::ensure!(broken.is_empty(), "broken: {}", broken.join(", "));
        }
        Command::ChaosGuard => chaos::stand_by(),
        Command::ProxyApp => proxy::serve_app().await?,
        Command::ProxyHost(options) => proxy::serve_host(&options).await?,
    }
    Ok(())
}

/// Fails when a measurement missed a bar.
fn missed(bars: &[String]) -> anyhow::Result<()> {
    anyhow::ensure!(bars.is_empty(), "missed: {}", bars.join("; "));
    Ok(())
}

/// The fleet that is tested.
fn context_of(data_dir: &Path) -> anyhow::Result<client::Context> {
    client::Context::load(data_dir).context("no fleet to test; start one with: torpor up --detach")
}

/// The parts of a measurement that were asked for: all when none was.
fn chosen<P: ValueEnum>(only: &[P]) -> &[P] {
    if only.is_empty() { P::value_variants() } else { only }
}

/// Returns when somebody wants the program to end.
async fn interrupted() -> anyhow::Error {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return anyhow::anyhow!("signals cannot be waited for");
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    anyhow::anyhow!("interrupted; what was launched is ended and removed")
}
