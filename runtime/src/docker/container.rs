//! A container: created, started, adopted, stopped, measured.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, ContainerMemoryStats};
use bollard::query_parameters::{CreateContainerOptions, KillContainerOptions, ListContainersOptions, StatsOptions};
use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::{Semaphore, oneshot};

use super::error::{Cause, DockerError, cause, engine, found, refused};
use super::lives::{Life, state, vanished};
use super::spec::{DockerContainerSpec, FoundState};
use super::{Docker, KIND_CONTAINER, LABEL_ATTEMPT, LABEL_CONTAINER, LABEL_IMAGE, LABEL_POD_UID, create};
use crate::{Exit, Usage};

/// Executions and attached clients of one container at once.
const SESSIONS_MAX: usize = 64;
/// Times a creation is tried again after what had its name was removed.
const TRIES_MAX: usize = 3;
/// How soon a signal that could not be sent is sent again, at first and at last.
const SIGNAL_RETRY_MIN: Duration = Duration::from_millis(100);
const SIGNAL_RETRY_MAX: Duration = Duration::from_secs(10);
/// What Docker sends to a container that names no signal.
const STOP_SIGNAL: &str = "SIGTERM";

/// A handle of a container that was started. Clones are the same one; dropping them does not end it.
#[derive(Clone)]
pub struct DockerContainer(Arc<Inner>);

struct Inner {
    docker: Docker,
    name: String,
    started_at: Timestamp,
    stop_signal: String,
    tty: bool,
    stdin: bool,
    life: Arc<Life>,
    sessions: Arc<Semaphore>,
}

impl Docker {
    /// Creates and starts a container. What fails half-way is removed again, also where the caller drops the future.
    pub async fn start(&self, spec: DockerContainerSpec) -> Result<DockerContainer, DockerError> {
        let docker = self.clone();
        let (told, telling) = oneshot::channel();
        tokio::spawn(async move {
            let (pod, own) = (docker.0.pods.lock(&spec.pod.uid), format!("{}/{}", spec.pod.uid, spec.name));
            let own = docker.0.pods.lock(&own);
            let _here = pod.read().await;
            // One at a time: each takes what it finds under the name for left over.
            let _alone = own.write().await;
            if told.is_closed() {
                return;
            }
            let made = docker.make(spec).await;
            if let Err(Ok(unwanted)) = told.send(made)
                && let Err(error) = docker.remove(unwanted.id()).await
            {
                tracing::warn!(%error, container = unwanted.name(), "cannot remove a container nobody waits for");
            }
        });
        let lost = |_| Err(DockerError::Engine { act: "start a container", detail: "the start was broken off".into() });
        telling.await.unwrap_or_else(lost)
    }

    async fn make(&self, mut spec: DockerContainerSpec) -> Result<DockerContainer, DockerError> {
        spec.resources.oom_score_adj = spec.resources.oom_score_adj.max(self.0.oom_score_adj_min);
        let image_user = match create::needs_image_user(&spec) {
            true => self.has_image(&spec.image).await?.map(|image| image.user).unwrap_or_default(),
            false => String::new(),
        };
        let user = create::user(&spec, &image_user)?;
        let share_pid_of = match &spec.share_pid_of {
            Some(target) => Some(self.newest(&spec.pod.uid, target).await?),
            None => None,
        };
        self.0.uses.used(&spec.image);
        let name = create::name(&spec);
        let (uid, container, attempt) = (spec.pod.uid.clone(), spec.name.clone(), spec.attempt);
        let mut labels = self.labels(&spec.pod, KIND_CONTAINER, &spec.name);
        labels.insert(LABEL_ATTEMPT.to_owned(), attempt.to_string());
        labels.insert(LABEL_IMAGE.to_owned(), spec.image_name.clone());
        let body = create::body(spec, user, share_pid_of, labels)?;

        let id = self.create(&name, body).await?;
        // Before it runs, so that its end finds someone to tell.
        let _life = self.0.lives.life(&id);
        let client = self.0.connection.client()?;
        let failed = |detail| DockerError::Run { detail };
        let started = client.start_container(&id, None).await.map_err(refused(failed));
        let adopted = match started {
            Ok(()) => self.adopt(&id).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &adopted {
            tracing::debug!(%error, name, "not started");
            if let Err(error) = self.remove(&id).await {
                tracing::warn!(%error, name, "cannot remove a container that did not start");
            }
        } else {
            let docker = self.clone();
            tokio::spawn(async move { docker.forget_superseded(&uid, &container, attempt).await });
        }
        adopted
    }

    async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String, DockerError> {
        let client = self.0.connection.client()?;
        for _ in 0..TRIES_MAX {
            let options = CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
            match client.create_container(Some(options), body.clone()).await.map_err(cause) {
                Ok(created) => return Ok(created.id),
                // Left over from a start that was broken off: nobody has a handle of it.
                Err(Cause::Refused(409, detail)) => {
                    match found(client.inspect_container(name, None).await).map_err(engine("inspect a container"))? {
                        Some(stale) => self.remove(stale.id.as_deref().unwrap_or(name)).await?,
                        None if detail.contains("in use") => {}
                        None => return Err(DockerError::Create { detail }),
                    }
                }
                Err(Cause::Refused(_, detail)) => return Err(DockerError::Create { detail }),
                Err(Cause::Lost(detail)) => return Err(DockerError::Unreachable { detail }),
            }
        }
        Err(DockerError::Create { detail: format!("something else keeps making {name}") })
    }

    /// A handle of a container that was started before, such as by an agent that is no more. It may have ended.
    pub async fn adopt(&self, id: &str) -> Result<DockerContainer, DockerError> {
        let client = self.0.connection.client()?;
        let inspecting = client.inspect_container(id, None).await;
        let Some(inspected) = found(inspecting).map_err(engine("inspect a container"))? else {
            return Err(DockerError::NotFound { id: id.to_owned() });
        };
        let id = inspected.id.clone().unwrap_or_else(|| id.to_owned());
        let life = self.0.lives.life(&id);
        let now = Timestamp::now();
        let (found, started_at) = state(&inspected, now);
        let config = inspected.config.clone().unwrap_or_default();
        let labels = config.labels.unwrap_or_default();
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let name = format!(
            "{}/{}/{}",
            label(super::LABEL_POD_NAMESPACE),
            label(super::LABEL_POD_NAME),
            label(LABEL_CONTAINER)
        );
        let started_at = match found {
            FoundState::Created => return Err(DockerError::Run { detail: format!("{name} was never started") }),
            FoundState::Running => started_at.unwrap_or(now),
            FoundState::Exited(exit) => {
                let started_at = exit.started_at;
                self.ended(&life, exit, &inspected).await;
                started_at
            }
        };
        life.started(started_at);
        Ok(DockerContainer(Arc::new(Inner {
            docker: self.clone(),
            name,
            started_at,
            stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()).unwrap_or_else(|| STOP_SIGNAL.into()),
            tty: config.tty == Some(true),
            stdin: config.open_stdin == Some(true),
            life,
            sessions: Arc::new(Semaphore::new(SESSIONS_MAX)),
        })))
    }

    /// The id of the running container of this name in the pod.
    async fn newest(&self, uid: &str, name: &str) -> Result<String, DockerError> {
        let labels = [format!("{LABEL_POD_UID}={uid}"), format!("{LABEL_CONTAINER}={name}")];
        let running = self.list(labels, false).await?;
        let id = running.into_iter().find_map(|container| container.id);
        id.ok_or_else(|| DockerError::Config { detail: format!("target container {name:?} is not running") })
    }

    /// The containers of this owner that also have all these labels, newest first.
    pub(super) async fn list(
        &self,
        labels: impl IntoIterator<Item = String>,
        all: bool,
    ) -> Result<Vec<bollard::models::ContainerSummary>, DockerError> {
        let labels = labels.into_iter().chain([self.owner_label()]).collect();
        let filters = Some(HashMap::from([("label".to_owned(), labels)]));
        let options = ListContainersOptions { all, filters, ..Default::default() };
        let client = self.0.connection.client()?;
        client.list_containers(Some(options)).await.map_err(engine("list containers"))
    }
}

impl DockerContainer {
    /// Docker's id.
    pub fn id(&self) -> &str {
        &self.0.life.id
    }

    /// For messages: `namespace/pod/container`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// When Docker started it.
    pub fn started_at(&self) -> Timestamp {
        self.0.started_at
    }

    /// Waits for the end, also across restarts of the engine. Any number may wait. Needs [`Docker::watch`].
    pub async fn exited(&self) -> Exit {
        self.0.life.exited().await
    }

    /// The end, if it has been noticed.
    pub fn exit(&self) -> Option<Exit> {
        self.0.life.exit()
    }

    /// Sends the container's stop signal and returns at once. Sent again for as long as the engine does not take it.
    /// Needs a tokio runtime.
    pub fn stop(&self) {
        self.signal(self.0.stop_signal.clone());
    }

    /// As [`DockerContainer::stop`], with SIGKILL. Exit code 137.
    pub fn kill(&self) {
        self.0.life.kill();
        self.signal("SIGKILL".to_owned());
    }

    fn signal(&self, signal: String) {
        let container = self.clone();
        tokio::spawn(async move {
            let mut retry = SIGNAL_RETRY_MIN;
            while container.exit().is_none() && !container.sent(&signal).await {
                tokio::select! {
                    _ = container.exited() => return,
                    () = tokio::time::sleep(retry) => retry = (retry * 2).min(SIGNAL_RETRY_MAX),
                }
            }
        });
    }

    /// Whether there is nothing more to be sent.
    async fn sent(&self, signal: &str) -> bool {
        let docker = &self.0.docker;
        let Ok(client) = docker.0.connection.client() else { return false };
        let options = KillContainerOptions { signal: signal.to_owned() };
        match client.kill_container(self.id(), Some(options)).await.map_err(cause) {
            Ok(()) => true,
            Err(Cause::Refused(404, _)) => {
                self.0.life.ended(vanished(Some(self.0.started_at), Timestamp::now()));
                true
            }
            // Not running (any more): its end may not have been heard of.
            Err(Cause::Refused(409, _)) => {
                docker.check(&self.0.life).await;
                self.exit().is_some()
            }
            Err(Cause::Refused(_, detail)) => {
                tracing::warn!(container = self.0.name, signal, detail, "cannot send a signal");
                false
            }
            Err(Cause::Lost(_)) => false,
        }
    }

    /// What it uses; `None` where it does not run or the engine does not answer.
    pub async fn usage(&self) -> Option<Usage> {
        if self.exit().is_some() {
            return None;
        }
        let client = self.0.docker.0.connection.client().ok()?;
        let options = StatsOptions { stream: false, one_shot: true };
        let stats = client.stats(self.id(), Some(options)).next().await?.ok()?;
        let cpu_ns = stats.cpu_stats?.cpu_usage?.total_usage?;
        let memory_bytes = working_set(&stats.memory_stats?)?;
        Some(Usage { cpu_ns, memory_bytes })
    }

    pub(super) fn docker(&self) -> &Docker {
        &self.0.docker
    }

    pub(super) fn tty(&self) -> bool {
        self.0.tty
    }

    pub(super) fn stdin(&self) -> bool {
        self.0.stdin
    }

    pub(super) fn sessions(&self) -> &Arc<Semaphore> {
        &self.0.sessions
    }
}

/// Memory that cannot be taken back without harm, as Kubernetes counts: all but the files that have not been used
/// lately. The name of those depends on the version of cgroups.
fn working_set(memory: &ContainerMemoryStats) -> Option<u64> {
    let stats = memory.stats.as_ref();
    let inactive = stats.and_then(|stats| stats.get("total_inactive_file").or_else(|| stats.get("inactive_file")));
    Some(memory.usage?.saturating_sub(inactive.copied().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_sets() {
        let check = |json: &str, expected| {
            assert_eq!(working_set(&serde_json::from_str(json).unwrap()), expected, "{json}");
        };
        check(r#"{"usage":100,"stats":{"inactive_file":10,"total_inactive_file":30}}"#, Some(70));
        check(r#"{"usage":100,"stats":{"inactive_file":10}}"#, Some(90));
        check(r#"{"usage":5,"stats":{"inactive_file":10}}"#, Some(0));
        check(r#"{"usage":5}"#, Some(5));
        check("{}", None);
    }
}
