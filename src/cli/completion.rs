//! `completion`: what a shell needs to complete our verbs and flags. Deliberately absent: names of objects in the cluster.

use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;

use super::failure::{Result, usage};
use super::output;

/// Arguments of `completion`.
#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    /// bash, zsh, fish or powershell
    words: Vec<String>,
}

/// Carries it out.
pub fn run(args: CompletionArgs) -> Result<()> {
    let shell = match args.words.as_slice() {
        [] => return usage("completion", "Shell not specified."),
        [shell] => shell,
        _ => return usage("completion", "Too many arguments. Expected only the shell type."),
    };
    let shell = match shell.as_str() {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        "powershell" => Shell::PowerShell,
        other => return usage("completion", format!("Unsupported shell type {other:?}.")),
    };
    let runs = crate::Run::augment_subcommands(crate::Door::command());
    let mut command = super::as_kubectl(super::Verb::augment_subcommands(runs));
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "coracle", &mut script);
    output::bytes(&script);
    Ok(())
}
