//! The door: flags in, exit code out. What runs a cluster is in `cluster`, what talks to one in `cli`.

mod cli;
mod cluster;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// A WebAssembly-native, Kubernetes-compatible orchestrator for small nodes.
#[derive(Parser)]
#[command(
    name = "coracle",
    version,
    propagate_version = false,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Door {
    #[command(flatten)]
    globals: cli::Globals,
}

/// The verbs that run a cluster.
#[derive(Subcommand)]
enum Run {
    /// Run the master, with a node agent inside unless told otherwise
    Server(Box<cluster::ServerFlags>),
    /// Run a node of a cluster elsewhere
    Agent(Box<cluster::AgentFlags>),
    /// Run a throw-away single-node cluster in the foreground and apply files to it
    Up(cluster::UpFlags),
}

fn main() -> ExitCode {
    // cannot fail: nothing installed a provider before
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = match cluster::with_config_file(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => return fail(&error),
    };
    let command = cli::Verb::augment_subcommands(Run::augment_subcommands(Door::command()));
    let matches = match cli::as_kubectl(command).try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return cli::usage_error(&error),
    };
    let result = match matches.subcommand_name() {
        Some("server" | "agent" | "up") => {
            log_to_stderr();
            Run::from_arg_matches(&matches).map_err(anyhow::Error::from).and_then(|run| match run {
                Run::Server(flags) => cluster::server(*flags),
                Run::Agent(flags) => cluster::agent(*flags),
                Run::Up(flags) => cluster::up(flags),
            })
        }
        _ => client(&matches),
    };
    result.unwrap_or_else(|error| fail(&error))
}

fn client(matches: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    let verb = cli::Verb::from_arg_matches(matches)?;
    let globals = Door::from_arg_matches(matches)?.globals;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(cli::run(verb, globals)))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

/// `CORACLE_LOG` chooses what is logged, in tracing's filter syntax.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("CORACLE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
