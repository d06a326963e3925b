//! The logs door: finds the log a reader asks for, and says in the kubelet's words why there is none.

use crate::body::{Body, LatestLog};
use crate::container::log_dir;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use runtime::logs::{LogFile, ReadOptions, read};
use std::path::{Path, PathBuf};
use sync::{CallError, Logs, Output, OutputStream};

/// Opens a container's log.
pub async fn open(body: &Body, wanted: Logs) -> Result<OutputStream, CallError> {
    let found = find(body, &wanted)?;
    let options = ReadOptions {
        follow: wanted.follow,
        tail_lines: wanted.tail_lines,
        since: wanted.since,
        limit_bytes: wanted.limit_bytes,
        timestamps: wanted.timestamps,
    };
    let failed = |error: &dyn std::error::Error| {
        CallError::Failed(format!("failed to open the log of container {:?}: {error}", wanted.container))
    };
    let opened = tokio::task::spawn_blocking(move || read(&found.dir, found.instance, options, found.live)).await;
    let stream = opened.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    Ok(stream.map_ok(Output::Stdout).map_err(|error| CallError::Failed(error.to_string())).boxed())
}

struct Found {
    dir: PathBuf,
    instance: u32,
    live: Option<LogFile>,
}

fn find(body: &Body, wanted: &Logs) -> Result<Found, CallError> {
    let world = body.world();
    let key = state::Key::of::<Pod>(&wanted.namespace, &wanted.pod);
    let not_found = || CallError::NotFound(format!("pods {:?} not found", wanted.pod));
    let object = world.get(&key).ok_or_else(not_found)?;
    let pod: &Pod = object.view().ok_or_else(not_found)?;
    let container = container_name(pod, wanted)?;
    let uid = &object.meta().uid;
    let dir = log_dir(&body.config.data_dir, &wanted.namespace, &wanted.pod, uid).join(&container);
    let latest = body.logs.lock().get(&(uid.clone(), container.clone())).cloned();
    let status = status_of(pod, &container);
    match (wanted.previous, latest) {
        (false, Some(LatestLog { instance, file })) => Ok(Found { dir, instance, live: Some(file) }),
        (true, Some(LatestLog { instance, .. })) if instance > 0 && exists(&dir, instance - 1) => {
            Ok(Found { dir, instance: instance - 1, live: None })
        }
        (true, _) => {
            let message = format!("previous terminated container {container:?} in pod {:?} not found", wanted.pod);
            Err(CallError::BadRequest(message))
        }
        // it ended under an earlier agent, or never began
        (false, None) => {
            let instance = status.and_then(|status| u32::try_from(status.restart_count).ok()).unwrap_or(0);
            if exists(&dir, instance) {
                return Ok(Found { dir, instance, live: None });
            }
            let waiting = status.and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone());
            let reason = waiting.unwrap_or_else(|| "ContainerCreating".into());
            let message = format!("container {container:?} in pod {:?} is waiting to start: {reason}", wanted.pod);
            Err(CallError::BadRequest(message))
        }
    }
}

fn exists(dir: &Path, instance: u32) -> bool {
    dir.join(format!("{instance}.log")).exists()
}

/// The container that is meant; a pod with several wants to be told which.
fn container_name(pod: &Pod, wanted: &Logs) -> Result<String, CallError> {
    let spec = pod.spec.as_ref();
    let main: Vec<&str> = spec.iter().flat_map(|s| &s.containers).map(|c| c.name.as_str()).collect();
    let init = spec.iter().flat_map(|s| s.init_containers.iter().flatten()).map(|c| c.name.as_str());
    let name = wanted.container.as_str();
    if main.contains(&name) || init.clone().any(|init| init == name) {
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

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses);
    all.flatten().find(|status| status.name == container)
}
