//! `attach`: our stdin, stdout, stderr and terminal on the program that a container runs already.

use serde_json::Value;

use super::client::with_query;
use super::exec::{flags, takes_terminal, with_terminal};
use super::failure::{Result, fail, usage};
use super::files::FileArgs;
use super::output;
use super::session::{Session, name_of};
use super::stream::remote::{self, Sink, Streams};
use super::stream::{target, terminal};

/// Flags of `attach`.
#[derive(Debug, clap::Args)]
pub struct AttachArgs {
    /// POD, TYPE/NAME, or TYPE NAME
    pub words: Vec<String>,
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

/// What to attach with, for the verbs that attach to a pod they made.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// Pass our stdin on.
    pub stdin: bool,
    /// Give the program our terminal.
    pub tty: bool,
    /// Say nothing of our own.
    pub quiet: bool,
}

/// Carries it out.
pub async fn run(session: &Session, args: AttachArgs) -> Result<()> {
    if args.words.is_empty() {
        return fail("at least 1 argument is required for attach");
    }
    if args.words.len() > 2 {
        return fail(format!(
            "expected POD, TYPE/NAME, or TYPE NAME, (at most 2 arguments) saw {}: [{}]",
            args.words.len(),
            args.words.join(" ")
        ));
    }
    if args.pod_running_timeout.is_zero() {
        return usage("attach", "--pod-running-timeout must be higher than zero");
    }
    let pod = target::choose(session, &args.words, &FileArgs::default(), args.pod_running_timeout).await?.pod;
    let wish = Wish { stdin: args.stdin, tty: args.tty, quiet: args.quiet };
    attach(session, &pod, args.container.as_deref(), wish).await
}

/// Attaches to a container of a pod until its program ends or the connection does.
pub async fn attach(session: &Session, pod: &Value, container: Option<&str>, wish: Wish) -> Result<()> {
    if target::is_over(pod) {
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        return fail(format!("cannot attach a container in a completed pod; current phase is {phase}"));
    }
    let container = target::container(pod, container, wish.quiet)?;
    let has_tty = target::container_of(pod, &container).is_some_and(|container| container["tty"] == true);
    if wish.tty && !has_tty && !wish.quiet {
        eprintln!("error: Unable to use a TTY - container {container} did not allocate one");
    }
    // A program that has a terminal writes one stream, whether its terminal is ours or not.
    let wants_raw = takes_terminal(wish.stdin, has_tty, wish.quiet);
    if !wish.quiet {
        eprintln!("If you don't see a command prompt, try pressing enter.");
    }
    let raw = wants_raw.then(terminal::Raw::enter).flatten();
    let is_raw = raw.is_some();
    let mut query = vec![("container", container.clone())];
    query.extend(flags(wish.stdin, has_tty));
    let path = with_query(&target::path(session, pod, "attach"), &query);
    let streams = Streams {
        stdin: wish.stdin.then(terminal::stdin),
        sink: Sink::Ours,
        sizes: is_raw.then(|| terminal::sizes(true)),
    };
    with_terminal(raw, remote::run(&session.client, &path, streams)).await?;
    let restarts = pod["spec"]["restartPolicy"].as_str().unwrap_or("Always") == "Always";
    if is_raw && !wish.quiet && restarts {
        output::line(&format!(
            "Session ended, resume using 'coracle attach {} -c {container} -i -t' command when the pod is running",
            name_of(pod)
        ));
    }
    Ok(())
}
