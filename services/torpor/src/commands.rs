//! What each command does.

mod base;
mod calls;
mod certs;
mod checkpoint;
mod curl;
mod domain;
mod down;
mod drain;
mod edge_error;
mod env;
mod follow;
mod hosts;
mod image;
mod image_views;
mod input;
mod key;
mod logs;
mod microvm;
mod microvm_views;
mod open;
mod shell;
mod status;
mod up;
mod usage;

use std::cell::OnceCell;
use std::path::Path;

use client::Context;
use prost::Message;
use rpc::Replicas;

use crate::cli::{Cli, Command};
use crate::error::CliError;
use crate::output::{self, Format, json};
use microvm::Change;

pub struct Session {
    pub context: Context,
    pub format: Format,
    scheduler: OnceCell<Replicas>,
    image_builder: OnceCell<Replicas>,
}

impl Session {
    /// Reads where the fleet in `data_dir` is.
    pub fn open(data_dir: &Path, format: Format) -> Result<Self, CliError> {
        let context = Context::load(data_dir)?;
        Ok(Self { context, format, scheduler: OnceCell::new(), image_builder: OnceCell::new() })
    }

    /// Shows a message, whose full name is `name`, as JSON or with `table`.
    pub fn show<M: Message>(
        &self,
        name: &str,
        value: &M,
        table: impl FnOnce(&M) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        if self.json() { output::value(&json::message(name, value)) } else { table(value) }
    }

    /// As [`Session::show`] for several.
    pub fn show_all<M: Message>(
        &self,
        name: &str,
        values: &[M],
        table: impl FnOnce(&[M]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        if self.json() { output::value(&json::messages(name, values)) } else { table(values) }
    }

    /// True when results are JSON.
    pub fn json(&self) -> bool {
        self.format == Format::Json
    }
}

pub async fn dispatch(cli: Cli) -> Result<(), CliError> {
    let data_dir = std::path::absolute(&cli.global.data_dir)?;
    let format = cli.global.output;
    let session = || Session::open(&data_dir, format);
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
        Command::Usage(arguments) => usage::run(&session()?, arguments).await,
        Command::Suspend(arguments) => microvm::change(&session()?, &arguments.ids, Change::Suspend).await,
        Command::Checkpoint(arguments) => checkpoint::run(&session()?, arguments).await,
        Command::Awake(arguments) => microvm::awake(&session()?, arguments).await,
        Command::Resume(arguments) => microvm::change(&session()?, &arguments.ids, Change::Resume).await,
        Command::Terminate(arguments) => {
            microvm::change(&session()?, &arguments.ids, Change::Terminate).await
        }
        Command::Token(arguments) => microvm::token(&session()?, arguments).await,
        Command::Logs(arguments) => logs::run(&session()?, arguments).await,
        Command::Curl(arguments) => curl::run(&session()?, arguments).await,
        Command::Open(arguments) => open::run(&session()?, arguments).await,
        Command::Shell(arguments) => shell::run(&session()?, arguments).await,
        Command::Domain(command) => domain::run(&session()?, command).await,
        Command::Key(command) => key::run(&session()?, command).await,
        Command::Certs(arguments) => certs::run(&data_dir, format, arguments).await,
        Command::Hosts(arguments) => hosts::run(&session()?, arguments).await,
    }
}
