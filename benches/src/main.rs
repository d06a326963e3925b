//! The figures that Coracle is judged by, each taken from the real release binary as a process of its own.
//!
//! `cargo run --release -p benches -- [NAME]...`; without a name, all of them in the order of `ALL`.
//! README.md beside this crate holds the figures and what they are compared with. Nothing here fails because a figure
//! is bad: these are measurements, not tests.

mod calls;
mod client;
mod cluster;
mod cycles;
mod docker;
mod engine;
mod exec;
mod first_request;
mod fleet;
mod http;
mod idle;
mod load;
mod peers;
mod pods;
mod process;
mod start;
mod workload;

use anyhow::{Result, bail};
use std::time::Duration;

const ALL: [&str; 12] = [
    "start",
    "first-request",
    "idle",
    "http",
    "calls",
    "pods",
    "docker",
    "exec",
    "cycles",
    "link",
    "network",
    "master",
];

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [name, body] = arguments.as_slice()
        && name == peers::HYPER
    {
        return peers::serve_hyper(body.clone()).await;
    }
    if let Some((&fleet::peer::NAME, rest)) = arguments.iter().map(String::as_str).collect::<Vec<_>>().split_first() {
        return fleet::peer::run(rest).await;
    }
    let chosen: Vec<&str> =
        if arguments.is_empty() { ALL.to_vec() } else { arguments.iter().map(String::as_str).collect() };
    if let Some(unknown) = chosen.iter().find(|name| !ALL.contains(name)) {
        bail!("no such figure: {unknown}; there are {}", ALL.join(", "));
    }
    if fleet::site::is_inner() {
        return measure(chosen.first().copied().unwrap_or_default()).await;
    }
    println!("{} cores, load {}", std::thread::available_parallelism()?, process::load_average()?);
    for name in chosen {
        println!("\n{name}");
        measure(name).await?;
    }
    Ok(())
}

async fn measure(name: &str) -> Result<()> {
    match name {
        "start" => start::measure().await?,
        "first-request" => first_request::measure().await?,
        "idle" => idle::measure().await?,
        "http" => http::measure().await?,
        "calls" => calls::measure().await?,
        "pods" => pods::measure().await?,
        "docker" => docker::measure().await?,
        "exec" => exec::measure().await?,
        "link" => fleet::link::measure().await?,
        "network" => fleet::network::measure().await?,
        "master" => fleet::master::measure().await?,
        _ => cycles::measure().await?,
    }
    Ok(())
}

/// One figure: what it is, and its value with the unit.
fn line(what: &str, value: impl std::fmt::Display) {
    println!("  {what:<44} {value}");
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The value below which so much of them lies; `part` is from 0 to 1.
fn quantile(times: &[Duration], part: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or_default()
}

/// `1.2 ms, 3.4 ms`: what half of them, and all but one in a hundred, do not exceed.
fn spread(times: &[Duration]) -> String {
    let (half, most) = (milliseconds(quantile(times, 0.5)), milliseconds(quantile(times, 0.99)));
    format!("p50 {half:.2} ms, p99 {most:.2} ms, of {}", times.len())
}

/// The middle one, with the smallest and the largest: `12.3 ms (11.0 to 14.1, 5 runs)`.
fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |index: usize| times.get(index).copied().map_or(f64::NAN, milliseconds);
    let last = times.len().saturating_sub(1);
    format!("{:.1} ms ({:.1} to {:.1}, {} runs)", at(times.len() / 2), at(0), at(last), times.len())
}
