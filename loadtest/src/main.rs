//! Load tests of a running fleet: programs that measure, never tests that pass or
//! fail. Open loop: work starts when its time has come, whether or not earlier
//! work has finished, and a latency counts from the moment the work was due.

mod bare;
mod fleet;
mod image;
mod lifecycle;
mod report;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

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

#[derive(Subcommand)]
enum Command {
    /// Launch, suspend and wake through the fleet, beside the bare engine.
    ///
    /// Cycles alternate between the fleet (API, edge, host-agent) and libs/vmm
    /// driven directly on the same snapshot, in the same run, so that the ratios
    /// hold on a noisy machine. Without --image, an image of a small web app is
    /// built first and deleted afterwards.
    Lifecycle(lifecycle::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::Lifecycle(options) => {
            let report = lifecycle::run(&cli.data_dir, &options).await?;
            match cli.output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
                Output::Table => println!("{}", report.table()),
            }
        }
    }
    Ok(())
}
