//! The door: flags in, exit code out.
mod cli;

use clap::Parser;

#[derive(Parser)]
#[command(name = "coracle", version)]
struct Door {
    #[command(flatten)]
    globals: cli::Globals,
    #[command(subcommand)]
    verb: cli::Verb,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let door = Door::parse();
    cli::run(door.verb, door.globals).await
}
