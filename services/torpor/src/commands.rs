//! What each command does.

mod base;
mod calls;
mod curl;
mod down;
mod env;
mod follow;
mod hosts;
mod image;
mod image_views;
mod key;
mod logs;
mod microvm;
mod microvm_views;
mod status;
mod up;

use client::Context;

use crate::cli::{Cli, Command};
use crate::error::CliError;
use crate::output::Format;

/// What most commands work with.
pub struct Session {
    /// The fleet.
    pub context: Context,
    /// How results are written.
    pub format: Format,
}

impl Session {
    /// True when results are JSON.
    pub fn json(&self) -> bool {
        self.format == Format::Json
    }
}

/// Runs the command.
pub async fn dispatch(cli: Cli) -> Result<(), CliError> {
    let data_dir = std::path::absolute(&cli.global.data_dir)?;
    let format = cli.global.output;
    let session = || Ok::<_, CliError>(Session { context: Context::load(&data_dir)?, format });
    match cli.command {
        Command::Up(arguments) => up::run(&data_dir, &arguments).await,
        Command::Down(arguments) => down::run(&data_dir, &arguments).await,
        Command::S3 { config } => crate::fleet::s3::serve(&config).await,
        Command::Status => status::run(&data_dir, format).await,
        Command::Env => env::run(&data_dir, &session()?),
        Command::Base(command) => base::run(&session()?, command).await,
        Command::Image(command) => image::run(&session()?, *command).await,
        Command::Run(arguments) => microvm::run(&session()?, arguments).await,
        Command::List(arguments) => microvm::list(&session()?, arguments).await,
        Command::Get(arguments) => microvm::get(&session()?, arguments).await,
        Command::Suspend(arguments) => {
            microvm::change(&session()?, &arguments.ids, microvm::Change::Suspend).await
        }
        Command::Resume(arguments) => {
            microvm::change(&session()?, &arguments.ids, microvm::Change::Resume).await
        }
        Command::Terminate(arguments) => {
            microvm::change(&session()?, &arguments.ids, microvm::Change::Terminate).await
        }
        Command::Token(arguments) => microvm::token(&session()?, arguments).await,
        Command::Logs(arguments) => logs::run(&session()?, arguments).await,
        Command::Curl(arguments) => curl::run(&session()?, arguments).await,
        Command::Key(command) => key::run(&session()?, command).await,
        Command::Hosts(arguments) => hosts::run(&session()?, arguments).await,
    }
}
