//! What Docker has of our pods, by labels.

use std::collections::BTreeSet;

use bollard::models::{ContainerInspectResponse, ContainerSummary};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;

use super::error::{DockerError, engine, found};
use super::lives::state;
use super::spec::{FoundContainer, FoundPod, FoundSandbox};
use super::{Docker, KIND_SANDBOX, LABEL_ATTEMPT, LABEL_CONTAINER, LABEL_IMAGE, LABEL_KIND, LABEL_POD_UID};

/// Containers inspected or removed at once.
const AT_ONCE_MAX: usize = 8;

impl Docker {
    /// What exists of a pod: sandbox and containers, dead ones too.
    pub async fn find(&self, uid: &str) -> Result<FoundPod, DockerError> {
        let client = self.0.connection.client()?;
        let ids: Vec<String> = self.of_pod(uid).await?.into_iter().filter_map(|container| container.id).collect();
        let inspecting = ids.into_iter().map(|id| async move { found(client.inspect_container(&id, None).await) });
        let inspected: Vec<Option<ContainerInspectResponse>> = futures::stream::iter(inspecting)
            .buffer_unordered(AT_ONCE_MAX)
            .try_collect()
            .await
            .map_err(engine("inspect a container"))?;

        let mut pod = FoundPod::default();
        for inspected in inspected.into_iter().flatten() {
            let Some(id) = inspected.id.clone() else { continue };
            let labels = inspected.config.as_ref().and_then(|config| config.labels.clone()).unwrap_or_default();
            let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
            if label(LABEL_KIND) == KIND_SANDBOX {
                let running = inspected.state.as_ref().is_some_and(|state| state.running == Some(true));
                pod.sandbox = Some(FoundSandbox { id, address: self.address(&inspected), running });
                continue;
            }
            let (state, started_at) = state(&inspected, Timestamp::now());
            pod.containers.push(FoundContainer {
                id,
                name: label(LABEL_CONTAINER),
                attempt: label(LABEL_ATTEMPT).parse().unwrap_or(0),
                state,
                started_at,
                image_id: inspected.image.unwrap_or_default(),
                image_name: label(LABEL_IMAGE),
            });
        }
        pod.containers.sort_by(|a, b| a.name.cmp(&b.name).then(b.attempt.cmp(&a.attempt)));
        Ok(pod)
    }

    /// The uids of all pods that anything is left of.
    pub async fn pods(&self) -> Result<Vec<String>, DockerError> {
        let all = self.list([], true).await?;
        let uids: BTreeSet<String> = all.iter().filter_map(|container| label(container, LABEL_POD_UID)).collect();
        Ok(uids.into_iter().collect())
    }

    /// Removes all of a pod, its sandbox last. Absent is fine.
    pub async fn remove_pod(&self, uid: &str) -> Result<(), DockerError> {
        let lock = self.0.pods.lock(uid);
        let _alone = lock.write().await;
        let all = self.of_pod(uid).await?;
        let (sandboxes, containers): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|container| label(container, LABEL_KIND).as_deref() == Some(KIND_SANDBOX));
        self.remove_all(containers).await?;
        self.remove_all(sandboxes).await
    }

    async fn remove_all(&self, containers: Vec<ContainerSummary>) -> Result<(), DockerError> {
        let ids = containers.into_iter().filter_map(|container| container.id);
        let removing = ids.map(|id| async move { self.remove(&id).await });
        futures::stream::iter(removing).buffer_unordered(AT_ONCE_MAX).try_collect().await
    }

    async fn of_pod(&self, uid: &str) -> Result<Vec<ContainerSummary>, DockerError> {
        self.list([format!("{LABEL_POD_UID}={uid}")], true).await
    }
}

pub(super) fn label(container: &ContainerSummary, name: &str) -> Option<String> {
    container.labels.as_ref()?.get(name).cloned()
}
