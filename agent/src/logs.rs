//! The logs door: finds the log a reader asks for, and says in the kubelet's words why there is none.

use crate::body::{Body, LatestLog};
use bytes::Bytes;
use crate::container::log_dir;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use runtime::logs::{LogFile, ReadOptions, read};
use std::io;
use std::path::PathBuf;

/// Whose log is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container; where the pod has only one it may be left out.
    pub container: Option<String>,
    /// The instance before the current one.
    pub previous: bool,
}

/// Why there is no log to read.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// No such pod on this node: 404.
    #[error("pods {0:?} not found")]
    Pod(String),
    /// The request does not fit the pod: 400.
    #[error("{0}")]
    Request(String),
    /// The log is there and cannot be read: 500.
    #[error("failed to open the log of container {container:?}")]
    Open {
        /// The container.
        container: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A log's bytes, as they are read.
pub type LogStream = BoxStream<'static, io::Result<Bytes>>;

/// Opens a container's log.
pub async fn open(body: &Body, wanted: Wanted, options: ReadOptions) -> Result<LogStream, LogsError> {
    let found = find(body, &wanted)?;
    let opened = tokio::task::spawn_blocking(move || read(&found.dir, found.instance, options, found.live)).await;
    let opened = opened.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    opened.map_err(|source| LogsError::Open { container: wanted.container.unwrap_or_default(), source })
}

struct Found {
    dir: PathBuf,
    instance: u32,
    live: Option<LogFile>,
}

fn find(body: &Body, wanted: &Wanted) -> Result<Found, LogsError> {
    let world = body.world();
    let key = state::Key::of::<Pod>(&wanted.namespace, &wanted.pod);
    let object = world.get(&key).ok_or_else(|| LogsError::Pod(wanted.pod.clone()))?;
    let pod: &Pod = object.view().ok_or_else(|| LogsError::Pod(wanted.pod.clone()))?;
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
            Err(LogsError::Request(message))
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
            Err(LogsError::Request(message))
        }
    }
}

fn exists(dir: &std::path::Path, instance: u32) -> bool {
    dir.join(format!("{instance}.log")).exists()
}

/// The container that is meant; a pod with several wants to be told which.
fn container_name(pod: &Pod, wanted: &Wanted) -> Result<String, LogsError> {
    let spec = pod.spec.as_ref();
    let main: Vec<&str> = spec.iter().flat_map(|s| &s.containers).map(|c| c.name.as_str()).collect();
    let init = spec.iter().flat_map(|s| s.init_containers.iter().flatten()).map(|c| c.name.as_str());
    match wanted.container.as_deref().filter(|name| !name.is_empty()) {
        Some(name) if main.contains(&name) || init.clone().any(|init| init == name) => Ok(name.to_owned()),
        Some(name) => {
            Err(LogsError::Request(format!("container {name} is not valid for pod {}", wanted.pod)))
        }
        None => match main.as_slice() {
            [only] => Ok((*only).to_owned()),
            _ => Err(LogsError::Request(format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                wanted.pod,
                main.join(" ")
            ))),
        },
    }
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses);
    all.flatten().find(|status| status.name == container)
}
