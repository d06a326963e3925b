//! The client verbs as `up` uses them: the same words that a person would type.

use super::{Globals, Verb, run};
use clap::Parser;
use std::process::ExitCode;

/// Logs followed at once.
const LOG_REQUESTS_MAX: &str = "100";

#[derive(Parser)]
#[command(no_binary_name = true)]
struct Line {
    #[command(subcommand)]
    verb: Verb,
}

/// `apply -f FILE...`; says what it did, and whether all of it went well.
pub async fn apply(globals: &Globals, files: &[String]) -> bool {
    let mut words = vec!["apply".to_owned()];
    words.extend(files.iter().map(|file| format!("--filename={file}")));
    say(globals.clone(), words).await == ExitCode::SUCCESS
}

/// `logs -f` of everything that `what` names, each line with its source.
pub async fn follow_logs(globals: Globals, what: Vec<String>) {
    let flags =
        ["logs", "--follow", "--all-containers", "--prefix", "--ignore-errors", "--max-log-requests", LOG_REQUESTS_MAX];
    let words = flags.map(str::to_owned).into_iter().chain(what).collect();
    say(globals, words).await;
}

async fn say(globals: Globals, words: Vec<String>) -> ExitCode {
    match Line::try_parse_from(words) {
        Ok(line) => run(line.verb, globals).await,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
