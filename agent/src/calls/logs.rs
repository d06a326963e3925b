//! Logs: finds the log a reader asks for, ours or Docker's, and says in the kubelet's words why there is none.

use super::{find_pod, status_of};
use crate::body::{Body, LatestLog};
use crate::container::guest::Guest;
use crate::container::{chain, log_dir};
use futures::stream::empty;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use runtime::docker::FoundState;
use runtime::logs::{LogFile, ReadOptions, Stream, read};
use state::Object;
use std::path::{Path, PathBuf};
use sync::{CallError, Logs, Output, OutputStream};

/// Opens a container's log.
pub async fn open(body: &Body, wanted: Logs) -> Result<OutputStream, CallError> {
    let pod = find_pod(body, &wanted.namespace, &wanted.pod, "")?;
    let container = container_name(&pod, &wanted)?;
    let attempts = attempts(body, &pod, &container).await?;
    let place = choose(attempts, wanted.previous).ok_or_else(|| absent(&pod, &container, &wanted))?;
    // of neither output is everything for who does not say
    let (stdout, stderr) = if wanted.stdout || wanted.stderr { (wanted.stdout, wanted.stderr) } else { (true, true) };
    let options = ReadOptions {
        follow: wanted.follow,
        tail_lines: wanted.tail_lines,
        since: wanted.since,
        limit_bytes: wanted.limit_bytes,
        timestamps: wanted.timestamps,
        stream: match (stdout, stderr) {
            (true, false) => Some(Stream::Stdout),
            (false, true) => Some(Stream::Stderr),
            _ => None,
        },
    };
    let failed = |error: &dyn std::error::Error| {
        CallError::Failed(format!("failed to open the log of container {container:?}: {}", chain(error)))
    };
    let stream = match place {
        Place::Silent => empty().boxed(),
        Place::File { dir, instance, live } => {
            let opened = tokio::task::spawn_blocking(move || read(&dir, instance, options, live)).await;
            opened.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?
        }
        Place::Docker { id } => {
            let Some(docker) = &body.docker else { return Err(absent(&pod, &container, &wanted)) };
            docker.logs(&id, options, stdout, stderr).await.map_err(|error| failed(&error))?
        }
    };
    Ok(stream.map_ok(Output::Stdout).map_err(|error| CallError::Failed(error.to_string())).boxed())
}

/// Where the log of one attempt is.
enum Place {
    /// A file of ours.
    File { dir: PathBuf, instance: u32, live: Option<LogFile> },
    /// A container of Docker's.
    Docker { id: String },
    /// It said nothing.
    Silent,
}

/// The attempts of a container of which something is left, each with its number.
async fn attempts(body: &Body, pod: &Object, container: &str) -> Result<Vec<(u32, Place)>, CallError> {
    let meta = pod.meta();
    let key = (meta.uid.clone(), container.to_owned());
    let dir = log_dir(&body.config.data_dir, meta.namespace.as_deref().unwrap_or_default(), &meta.name, &meta.uid);
    let dir = dir.join(container);
    let latest = body.logs.lock().get(&key).cloned();
    let running = body.guests.lock().get(&key).map(|live| live.guest.clone());
    let restarts = pod.view::<Pod>().and_then(|pod| status_of(pod, container)).map_or(0, |status| status.restart_count);
    let mut found = files(&dir, latest, u32::try_from(restarts).unwrap_or(0));
    // whoever runs says where the newest is; Docker may have any of the others
    let is_ours = matches!(running, Some(Guest::Wasm(_))) && found.len() > 1;
    if let Some(docker) = body.docker.as_ref().filter(|_| !is_ours) {
        let of_pod = docker.find(&meta.uid).await.map_err(|error| CallError::Failed(chain(&error)));
        // with Docker down, what is ours can be read all the same
        match of_pod {
            Ok(of_pod) => found.extend(
                of_pod
                    .containers
                    .into_iter()
                    .filter(|of| of.name == container && of.state != FoundState::Created)
                    .map(|of| (of.attempt, Place::Docker { id: of.id })),
            ),
            Err(error) if found.is_empty() => return Err(error),
            Err(error) => tracing::debug!(%error, "containers of a pod not found"),
        }
    }
    Ok(found)
}

/// The attempts that our files know.
fn files(dir: &Path, latest: Option<LatestLog>, restarts: u32) -> Vec<(u32, Place)> {
    let on_disk = |instance: u32| {
        let exists = dir.join(format!("{instance}.log")).exists();
        exists.then(|| (instance, Place::File { dir: dir.to_owned(), instance, live: None }))
    };
    match latest {
        Some(LatestLog { instance, file }) => {
            let before = instance.checked_sub(1).map(|before| on_disk(before).unwrap_or((before, Place::Silent)));
            let now = (instance, Place::File { dir: dir.to_owned(), instance, live: Some(file) });
            before.into_iter().chain([now]).collect()
        }
        // they ended under an earlier agent
        None => [restarts.checked_sub(1), Some(restarts)].into_iter().flatten().filter_map(on_disk).collect(),
    }
}

/// The newest attempt, or the one before it. What is really there counts before what only must have been.
fn choose(mut attempts: Vec<(u32, Place)>, previous: bool) -> Option<Place> {
    attempts.sort_by_key(|(number, place)| (std::cmp::Reverse(*number), matches!(place, Place::Silent)));
    attempts.dedup_by_key(|(number, _)| *number);
    attempts.into_iter().nth(usize::from(previous)).map(|(_, place)| place)
}

fn absent(pod: &Object, container: &str, wanted: &Logs) -> CallError {
    if wanted.previous {
        let message = format!("previous terminated container {container:?} in pod {:?} not found", wanted.pod);
        return CallError::BadRequest(message);
    }
    let status = pod.view::<Pod>().and_then(|pod| status_of(pod, container));
    let waiting = status.and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let reason = waiting.unwrap_or_else(|| "ContainerCreating".into());
    CallError::BadRequest(format!("container {container:?} in pod {:?} is waiting to start: {reason}", wanted.pod))
}

/// The container that is meant; a pod with several wants to be told which.
fn container_name(pod: &Object, wanted: &Logs) -> Result<String, CallError> {
    let spec = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref());
    let main: Vec<&str> = spec.iter().flat_map(|s| &s.containers).map(|c| c.name.as_str()).collect();
    let init = spec.iter().flat_map(|s| s.init_containers.iter().flatten()).map(|c| c.name.as_str());
    let ephemeral = spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten()).map(|c| c.name.as_str());
    let name = wanted.container.as_str();
    if main.iter().copied().chain(init).chain(ephemeral).any(|known| known == name) {
        return Ok(name.to_owned());
    }
    match main.as_slice() {
        [only] if name.is_empty() => Ok((*only).to_owned()),
        _ if name.is_empty() => Err(CallError::BadRequest(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            wanted.pod,
            main.join(" ")
        ))),
        _ => Err(CallError::BadRequest(format!("container {name} is not valid for pod {}", wanted.pod))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_attempt_is_meant_and_the_one_before_it() {
        let named = |place: &Place| match place {
            Place::Docker { id } => id.clone(),
            Place::File { .. } => "file".into(),
            Place::Silent => "silent".into(),
        };
        for (attempts, current, previous) in [
            (&[][..], None, None),
            (&[(0, "a")], Some("a"), None),
            (&[(3, "old"), (4, "new")], Some("new"), Some("old")),
            // the attempt before ran in Docker: our files have nothing of it
            (&[(4, "new"), (3, ""), (3, "old")], Some("new"), Some("old")),
            (&[(1, "new"), (0, "")], Some("new"), Some("silent")),
        ] {
            let place = |id: &str| if id.is_empty() { Place::Silent } else { Place::Docker { id: id.into() } };
            let again = || attempts.iter().map(|(number, id)| (*number, place(id))).collect();
            assert_eq!(choose(again(), false).as_ref().map(named).as_deref(), current);
            assert_eq!(choose(again(), true).as_ref().map(named).as_deref(), previous);
        }
    }

    #[test]
    fn files_of_an_earlier_agent_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for instance in [1, 2, 5] {
            std::fs::write(dir.path().join(format!("{instance}.log")), "").unwrap();
        }
        let numbers = |restarts| files(dir.path(), None, restarts).iter().map(|(n, _)| *n).collect::<Vec<_>>();
        assert_eq!(numbers(2), [1, 2]);
        assert_eq!(numbers(5), [5]);
        assert_eq!(numbers(0), [0; 0]);
        let file = LogFile::open(dir.path(), 2, runtime::logs::LogLimits::default()).unwrap();
        let live = files(dir.path(), Some(LatestLog { instance: 2, file }), 0);
        assert!(matches!(
            live.as_slice(),
            [(1, Place::File { live: None, .. }), (2, Place::File { live: Some(_), .. })]
        ));
        let quiet = LogFile::open(dir.path(), 7, runtime::logs::LogLimits::default()).unwrap();
        assert!(matches!(files(dir.path(), Some(LatestLog { instance: 7, file: quiet }), 0)[0], (6, Place::Silent)));
    }
}
