//! Takes over what an earlier agent left in Docker: what runs goes on, what ended tells how.

use super::jobs::Done;
use super::state::{Adoption, Current, Ended, LOST_REASON, Slot};
use super::worker::Worker;
use crate::container::guest::Guest;
use crate::container::{Started, termination};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use runtime::docker::{Docker, DockerContainer, DockerError, FoundContainer, FoundState, Health};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// Until an engine that does not answer is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// What Docker has of a pod.
pub(super) struct Found {
    address: Option<IpAddr>,
    /// Container name to its newest instance, with a handle when it runs.
    containers: HashMap<String, (FoundContainer, Option<DockerContainer>)>,
}

impl Worker {
    pub(super) fn adopt(&mut self) {
        let Some(docker) = self.body.docker.clone() else {
            self.state.adoption = Adoption::Done;
            return;
        };
        self.state.adoption = Adoption::UnderWay;
        let uid = self.uid.clone();
        self.jobs.spawn(async move {
            loop {
                let ready = |health: &Health| matches!(health, Health::Ready { .. });
                // the sender lives as long as the engine's handle
                let _ = docker.health().wait_for(ready).await;
                match find(&docker, &uid).await {
                    Ok(found) => return Done::Adopted(Box::new(found)),
                    Err(error) => tracing::warn!(uid, %error, "containers of an earlier agent not found yet"),
                }
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    pub(super) fn take_adopted(&mut self, mut found: Found) {
        self.state.adoption = Adoption::Done;
        if self.state.address.is_none()
            && let Some(address) = found.address
        {
            self.owned = self.body.pools.lock().reserve(address).then_some(address);
            self.state.address = self.owned;
        }
        let spec = self.spec.clone();
        for (slot, wanted) in spec.slots() {
            let Some((container, handle)) = found.containers.remove(&wanted.name) else { continue };
            let ended = self.ended(slot, &container);
            let Some(observed) = self.state.container_mut(slot) else { continue };
            observed.restarts = container.attempt;
            let Some(handle) = handle else {
                observed.current = Current::Ended(ended);
                continue;
            };
            let id = docker_id(&container.id);
            // what was told of an earlier instance, or before there was one, says nothing of this one
            let before =
                self.status_of(slot, &wanted.name).filter(|status| status.container_id.as_deref() == Some(&*id));
            let is = |field: fn(&ContainerStatus) -> bool, unasked| before.as_ref().map_or(unasked, field);
            let is_started = is(|status| status.started == Some(true), wanted.startup_probe.is_none());
            let is_ready = is(|status| status.ready, wanted.readiness_probe.is_none());
            let image_id = match &before {
                Some(status) => status.image_id.clone(),
                None => docker_id(&container.image_id),
            };
            let started = Started {
                id,
                image_id,
                since: handle.started_at(),
                guest: Guest::Docker(handle),
                log: None,
                door: None,
                messages: termination::file(&self.pod_dir, &wanted.name, container.attempt),
                pin: None,
            };
            self.hold(slot, wanted, started, is_started, is_ready);
        }
    }

    fn ended(&self, slot: Slot, container: &FoundContainer) -> Ended {
        let told = self.state.container(slot).and_then(|observed| observed.ended());
        let id = docker_id(&container.id);
        match (&container.state, told) {
            // told already, with its last words
            (_, Some(told)) if told.id == id && told.finished_at.is_some() && told.reason != LOST_REASON => {
                told.clone()
            }
            (FoundState::Exited(exit), _) => Ended {
                id,
                code: exit.code,
                reason: exit.reason.as_str().into(),
                message: exit.message.clone(),
                started_at: Some(exit.started_at),
                finished_at: Some(exit.finished_at),
            },
            // what runs has a handle, and what never ran was not kept
            (FoundState::Created | FoundState::Running, _) => Ended {
                id,
                code: 128,
                reason: "ContainerCannotRun".into(),
                message: "the container was made but never started".into(),
                started_at: None,
                finished_at: Some(Timestamp::now()),
            },
        }
    }

    /// What the cluster was last told of a container, or would have been.
    fn status_of(&self, slot: Slot, name: &str) -> Option<ContainerStatus> {
        let told = self.object.view::<Pod>().and_then(|pod| pod.status.as_ref());
        let status = self.publisher.last().or(told)?;
        let list = match slot {
            Slot::Init(_) => &status.init_container_statuses,
            Slot::Main(_) => &status.container_statuses,
            Slot::Ephemeral(_) => &status.ephemeral_container_statuses,
        };
        list.iter().flatten().find(|status| status.name == name).cloned()
    }
}

/// `containerID` of a container of Docker.
pub fn docker_id(id: &str) -> String {
    format!("docker://{id}")
}

async fn find(docker: &Docker, uid: &str) -> Result<Found, DockerError> {
    let pod = docker.find(uid).await?;
    let mut containers = HashMap::new();
    for container in pod.containers {
        if containers.contains_key(&container.name) {
            // of one name the newest comes first
            continue;
        }
        if container.state == FoundState::Created {
            // its start was broken off, or is still under way: then it would run beside the one that follows it
            docker.remove(&container.id).await?;
            continue;
        }
        let is_running = container.state == FoundState::Running;
        let handle = if is_running { Some(docker.adopt(&container.id).await?) } else { None };
        containers.insert(container.name.clone(), (container, handle));
    }
    Ok(Found { address: pod.sandbox.and_then(|sandbox| sandbox.address), containers })
}
