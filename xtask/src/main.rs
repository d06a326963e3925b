//! The project's own chores: `cargo xtask test` installs and starts what the tests need, and runs them all.

mod docker;
mod tools;

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["test", rest @ ..] => test(rest),
        ["check"] => check(),
        _ => Err(anyhow::anyhow!("usage: cargo xtask test [ARGUMENTS OF cargo test] | check")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// All tests. The profile is that of developers, with overflow checks; in it the compiler of Wasm is optimised, which
/// would take minutes otherwise.
fn test(rest: &[&str]) -> Result<()> {
    let mut missing = tools::install()?;
    let mut environment: Vec<(&str, OsString)> = Vec::new();
    // held until the tests are over: an engine that was started here ends with it
    let engine = docker::engine();
    match &engine {
        Ok(engine) => {
            environment.push(("CORACLE_TEST_DOCKER", "1".into()));
            environment.extend(engine.host().map(|host| ("DOCKER_HOST", host)));
        }
        Err(error) => missing.push(format!("tests of Docker containers, mixed pods and registries: {error:#}")),
    }
    let mut arguments = vec!["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"];
    arguments.extend(rest);
    let result = cargo(&arguments, &environment);
    drop(engine);
    for line in &missing {
        println!("not run: {line}");
    }
    result
}

/// What a reader of the source may take for granted.
fn check() -> Result<()> {
    cargo(&["fmt", "--all", "--check"], &[])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])
}

fn cargo(arguments: &[&str], environment: &[(&str, OsString)]) -> Result<()> {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let variables = environment.iter().map(|(name, value)| (name, value));
    let status = Command::new(program).args(arguments).envs(variables).status().context("run cargo")?;
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}
