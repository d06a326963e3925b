//! Who waits for which container to end, and how an end is read from what Docker says.
//!
//! One stream of events ([`super::health`]) wakes everyone: a waiter costs an entry here and no connection. An end is
//! always read by inspecting the container, so a missed, doubled or late event changes nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bollard::models::{ContainerInspectResponse, ContainerState, ContainerStateStatusEnum};
use jiff::Timestamp;
use tokio::sync::watch;

use super::spec::FoundState;
use crate::{Exit, ExitReason};

/// Ended by SIGKILL.
pub(super) const CODE_KILLED: i32 = 137;
/// Whose end Docker cannot tell any more.
const CODE_VANISHED: i32 = CODE_KILLED;
/// What could not be started.
const CODE_NOT_STARTED: i32 = 128;

type Table = Arc<Mutex<HashMap<String, Weak<Life>>>>;

/// One container that someone has a handle of.
pub(super) struct Life {
    pub(super) id: String,
    started_at: OnceLock<Timestamp>,
    exit: watch::Sender<Option<Exit>>,
    /// Sent a SIGKILL from here.
    killed: AtomicBool,
    table: Table,
}

/// All of them.
#[derive(Clone, Default)]
pub(super) struct Lives(Table);

impl Lives {
    /// The life of this container, made if there is none yet.
    pub(super) fn life(&self, id: &str) -> Arc<Life> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(life) = table.get(id).and_then(Weak::upgrade) {
            return life;
        }
        let life = Arc::new(Life {
            id: id.to_owned(),
            started_at: OnceLock::new(),
            exit: watch::Sender::new(None),
            killed: AtomicBool::new(false),
            table: self.0.clone(),
        });
        table.insert(id.to_owned(), Arc::downgrade(&life));
        life
    }

    /// The life of this container, if anyone cares.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Life>> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).and_then(Weak::upgrade);
        found.filter(|life| life.exit().is_none())
    }

    /// Those that have not ended.
    pub(super) fn running(&self) -> Vec<Arc<Life>> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<Arc<Life>> = table.values().filter_map(Weak::upgrade).collect();
        drop(table);
        all.into_iter().filter(|life| life.exit().is_none()).collect()
    }
}

impl Life {
    pub(super) fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    pub(super) fn started_at(&self) -> Option<Timestamp> {
        self.started_at.get().copied()
    }

    /// The first time told stays.
    pub(super) fn started(&self, at: Timestamp) {
        let _ = self.started_at.set(at);
    }

    pub(super) fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
    }

    /// Whether an end by SIGKILL is what was asked for.
    pub(super) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Relaxed)
    }

    /// The first end stays.
    pub(super) fn ended(&self, exit: Exit) {
        self.exit.send_if_modified(|now| {
            let first = now.is_none();
            if first {
                *now = Some(exit);
            }
            first
        });
    }

    pub(super) async fn exited(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(exit) = exit.borrow_and_update().clone() {
                return exit;
            }
            if exit.changed().await.is_err() {
                // The sender lives in `self`.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may have been made under this id in the meantime.
        if table.get(&self.id).is_some_and(|life| life.strong_count() == 0) {
            table.remove(&self.id);
        }
    }
}

/// How a container is, from what inspecting it said, with the time it was started at.
pub(super) fn state(inspected: &ContainerInspectResponse, now: Timestamp) -> (FoundState, Option<Timestamp>) {
    let empty = ContainerState::default();
    let state = inspected.state.as_ref().unwrap_or(&empty);
    let started_at = time(state.started_at.as_deref());
    let running = state.running == Some(true);
    let found = match state.status {
        Some(ContainerStateStatusEnum::CREATED) if state.error.as_deref().unwrap_or_default().is_empty() => {
            FoundState::Created
        }
        Some(ContainerStateStatusEnum::CREATED) => FoundState::Exited(Exit {
            code: CODE_NOT_STARTED,
            reason: ExitReason::ContainerCannotRun,
            message: state.error.clone().unwrap_or_default(),
            started_at: started_at.unwrap_or(now),
            finished_at: time(state.finished_at.as_deref()).unwrap_or(now),
        }),
        _ if running => FoundState::Running,
        _ => FoundState::Exited(exit(state, started_at, now)),
    };
    (found, started_at)
}

fn exit(state: &ContainerState, started_at: Option<Timestamp>, now: Timestamp) -> Exit {
    let code = state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(CODE_VANISHED);
    let reason = match code {
        _ if state.oom_killed == Some(true) => ExitReason::OomKilled,
        0 => ExitReason::Completed,
        _ => ExitReason::Error,
    };
    let finished_at = time(state.finished_at.as_deref()).unwrap_or(now);
    let started_at = started_at.unwrap_or(finished_at);
    let message = state.error.clone().unwrap_or_default();
    // Docker notes the start of what ends at once after its end.
    Exit { code, reason, message, started_at, finished_at: finished_at.max(started_at) }
}

/// The end of a container that Docker does not know any more.
pub(super) fn vanished(started_at: Option<Timestamp>, now: Timestamp) -> Exit {
    Exit {
        code: CODE_VANISHED,
        reason: ExitReason::Error,
        message: "the container could not be located: it was removed from Docker by someone else".to_owned(),
        started_at: started_at.unwrap_or(now),
        finished_at: now,
    }
}

/// Docker's time; its "never" is the year 1.
fn time(text: Option<&str>) -> Option<Timestamp> {
    text?.parse::<Timestamp>().ok().filter(|at| at.as_second() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(state_json: &str, expected: &str) {
        let inspected: ContainerInspectResponse = serde_json::from_str(&format!("{{\"State\":{state_json}}}")).unwrap();
        let now = Timestamp::new(2_000_000_000, 0).unwrap();
        let told = match state(&inspected, now).0 {
            FoundState::Exited(exit) => format!("{} {} {}", exit.code, exit.reason, exit.message),
            other => format!("{other:?}"),
        };
        assert_eq!(told.trim(), expected, "{state_json}");
    }

    #[test]
    fn states() {
        check(r#"{"Status":"created","Running":false,"ExitCode":0,"Error":""}"#, "Created");
        check(r#"{"Status":"created","ExitCode":127,"Error":"no such file"}"#, "128 ContainerCannotRun no such file");
        check(r#"{"Status":"running","Running":true,"ExitCode":0}"#, "Running");
        check(r#"{"Status":"paused","Running":true,"Paused":true,"ExitCode":0}"#, "Running");
        check(r#"{"Status":"exited","ExitCode":0,"OOMKilled":false}"#, "0 Completed");
        check(r#"{"Status":"exited","ExitCode":3,"OOMKilled":false}"#, "3 Error");
        check(r#"{"Status":"exited","ExitCode":137,"OOMKilled":true}"#, "137 OOMKilled");
        check(r#"{"Status":"dead","ExitCode":1}"#, "1 Error");
    }

    #[test]
    fn a_table_keeps_nothing() {
        let lives = Lives::default();
        let life = lives.life("a");
        assert!(Arc::ptr_eq(&life, &lives.life("a")));
        life.ended(vanished(None, Timestamp::now()));
        assert!(lives.running().is_empty() && lives.get("a").is_none());
        drop(life);
        assert!(lives.0.lock().unwrap().is_empty());
    }
}
