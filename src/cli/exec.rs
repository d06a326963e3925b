//! `exec`: a command in a container, with our stdin, stdout, stderr and terminal; its exit code becomes ours.

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use super::client::with_query;
use super::failure::{Failure, Result, fail, usage};
use super::files::FileArgs;
use super::session::Session;
use super::stream::remote::{self, Sink, Streams};
use super::stream::{target, terminal};

/// Flags of `exec`.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// POD or TYPE/NAME
    pub words: Vec<String>,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    /// Container name; the default is the pod's default container, or its first
    #[arg(short = 'c', long)]
    container: Option<String>,
    /// Pass stdin to the container
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Stdin is a TTY
    #[arg(short = 't', long)]
    tty: bool,
    /// Only print output from the remote session
    #[arg(short = 'q', long)]
    quiet: bool,
    /// How long to wait until at least one pod is running (5s, 2m, 3h)
    #[arg(long, default_value = "1m0s", value_parser = super::duration::flag)]
    pod_running_timeout: std::time::Duration,
}

/// Carries it out.
pub async fn run(session: &Session, args: ExecArgs) -> Result<()> {
    if args.words.is_empty() && args.files.is_empty() {
        return fail("pod, type/name or --filename must be specified");
    }
    if args.words.len() > 1 {
        return usage("exec", "exec [POD] [COMMAND] is not supported anymore. Use exec [POD] -- [COMMAND] instead");
    }
    if args.command.is_empty() {
        return fail("you must specify at least one command for the container");
    }
    let timeout = target::running_timeout("exec", args.pod_running_timeout)?;
    let pod = target::choose(session, &args.words, &args.files, timeout).await?.pod;
    if target::is_over(&pod) {
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        return fail(format!("cannot exec into a container in a completed pod; current phase is {phase}"));
    }
    let container = match args.container.clone().filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => target::container(&pod, None, args.quiet)?,
    };
    let raw = takes_terminal(args.stdin, args.tty, args.quiet).then(terminal::Raw::enter).flatten();
    let path = path(session, &pod, &container, &args.command, args.stdin, raw.is_some());
    let streams = Streams {
        stdin: args.stdin.then(terminal::stdin),
        sink: Sink::Ours,
        sizes: raw.as_ref().map(|_| terminal::sizes(false)),
    };
    with_terminal(raw, remote::run(&session.client, &path, streams)).await
}

/// Whether our terminal is to become the program's; says so when it is wanted and cannot be.
pub fn takes_terminal(stdin: bool, tty: bool, quiet: bool) -> bool {
    if !stdin || !tty {
        return false;
    }
    let is_terminal = terminal::is_terminal();
    if !is_terminal && !quiet {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    is_terminal
}

/// Carries out a piece of work and puts the terminal back after it, however it ends.
pub async fn with_terminal<T>(raw: Option<terminal::Raw>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(raw) = raw else { return work.await };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = terminal::killed() => Err(Failure::Exit(1)),
    };
    drop(raw);
    outcome
}

/// Runs a command with nothing typed; what it says goes nowhere.
pub async fn silently(session: &Session, pod: &Value, container: &str, command: &[String]) -> Result<()> {
    let streams = Streams { stdin: None, sink: Sink::Nowhere, sizes: None };
    remote::run(&session.client, &path(session, pod, container, command, false, false), streams).await
}

/// Runs a command that reads from one pipe of ours or writes into another.
pub async fn piped(
    session: &Session,
    pod: &Value,
    container: &str,
    command: &[String],
    stdin: Option<mpsc::Receiver<Bytes>>,
    stdout: Option<mpsc::Sender<Bytes>>,
) -> Result<()> {
    let path = path(session, pod, container, command, stdin.is_some(), false);
    let sink = stdout.map_or(Sink::Ours, Sink::Piped);
    remote::run(&session.client, &path, Streams { stdin, sink, sizes: None }).await
}

fn path(session: &Session, pod: &Value, container: &str, command: &[String], stdin: bool, tty: bool) -> String {
    let mut query: Vec<(&str, String)> = command.iter().map(|word| ("command", word.clone())).collect();
    query.push(("container", container.to_string()));
    query.extend(flags(stdin, tty));
    with_query(&target::path(session, pod, "exec"), &query)
}

/// The streams that are wanted, as parameters. With a terminal stderr comes on stdout.
pub fn flags(stdin: bool, tty: bool) -> impl Iterator<Item = (&'static str, String)> {
    [("stdin", stdin), ("stdout", true), ("stderr", !tty), ("tty", tty)]
        .into_iter()
        .filter(|(_, on)| *on)
        .map(|(name, _)| (name, "true".to_string()))
}
