//! Probes: asks a container how it is, counts, and tells its pod when the answer has changed.
//!
//! One task per probe, gone with its container. Deliberately absent: what follows from an answer (`pod::plan`).

mod ask;
mod grpc;
mod http;
#[cfg(test)]
mod tests;

use ask::dial_error;
pub use ask::{Doors, Target, run_hook};

use crate::pod::state::Slot;
use k8s_openapi::api::core::v1::Probe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Until it succeeds nothing else is asked.
    Startup,
    /// Whether requests should come.
    Readiness,
    /// Whether the container must be restarted.
    Liveness,
}

impl Kind {
    /// As events say it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What a probe's task tells its pod.
#[derive(Debug)]
pub struct Report {
    /// Which container.
    pub slot: Slot,
    /// Which instance of it.
    pub id: String,
    /// Which probe.
    pub kind: Kind,
    /// What it found.
    pub finding: Finding,
}

/// What a probe found.
#[derive(Debug)]
pub enum Finding {
    /// One failure, for the event.
    Failure(String),
    /// As many successes in a row as asked for.
    Good,
    /// As many failures in a row as tolerated.
    Bad,
}

/// Asks again and again until told to stop (by dropping), or until the answer is final.
pub async fn watch(
    kind: Kind,
    probe: Probe,
    target: Arc<Target>,
    slot: Slot,
    id: String,
    reports: mpsc::Sender<Report>,
) {
    let seconds = |value: Option<i32>, default: u64| {
        Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).filter(|v| *v > 0).unwrap_or(default))
    };
    let count = |value: Option<i32>, default: u32| {
        value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
    };
    let (period, timeout) = (seconds(probe.period_seconds, 10), seconds(probe.timeout_seconds, 1));
    let (good_at, bad_at) = (count(probe.success_threshold, 1), count(probe.failure_threshold, 3));
    let tell = |finding| reports.send(Report { slot, id: id.clone(), kind, finding });
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let mut tally = Tally::default();
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = target.ask(&probe, timeout).await;
        if let Err(message) = &answer
            && tell(Finding::Failure(message.clone())).await.is_err()
        {
            return;
        }
        let Some(good) = tally.count(answer.is_ok(), good_at, bad_at) else { continue };
        if tell(if good { Finding::Good } else { Finding::Bad }).await.is_err() {
            return;
        }
        // started once is started; and who is restarted gets new probes
        if kind == Kind::Startup || (kind == Kind::Liveness && !good) {
            return;
        }
    }
}

/// Counts answers in a row.
#[derive(Default)]
struct Tally {
    run: u32,
    last: Option<bool>,
    told: Option<bool>,
}

impl Tally {
    /// Counts one answer; `Some` when what is to be believed has changed.
    fn count(&mut self, good: bool, good_at: u32, bad_at: u32) -> Option<bool> {
        self.run = if self.last == Some(good) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(good);
        let enough = self.run >= if good { good_at } else { bad_at };
        if !enough || self.told == Some(good) {
            return None;
        }
        self.told = Some(good);
        Some(good)
    }
}
