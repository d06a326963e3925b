//! The door: flags in, exit code out.
mod cli;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};

#[derive(Parser)]
#[command(name = "coracle", version)]
struct Door {
    #[command(flatten)]
    globals: cli::Globals,
    #[command(subcommand)]
    verb: cli::Verb,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Only a second installation fails, and there is none.
    drop(rustls::crypto::ring::default_provider().install_default());
    let matches = cli::as_kubectl(Door::command()).try_get_matches();
    match matches.and_then(|mut matches| Door::from_arg_matches_mut(&mut matches)) {
        Ok(door) => cli::run(door.verb, door.globals).await,
        Err(error) => cli::usage_error(&error),
    }
}
