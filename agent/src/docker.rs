//! Docker as this node offers it: whether it may, under which name, and what is swept up behind pods that nobody knows any more.
//!
//! Deliberately absent: containers of known pods, which their workers keep.

use crate::addresses;
use crate::body::Body;
use crate::config::AgentConfig;
use crate::ground::Ground;
use netproxy::network::{self, Cidr};
use runtime::docker::{Docker, DockerConfig, Health, ImageLimits};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a start waits for an engine to say whether it is there.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// How often dead containers and images are looked through.
const SWEEP_PERIOD: Duration = Duration::from_secs(300);

/// The engine's handle, where this node has the privileges that mixed pods need.
pub fn open(config: &AgentConfig, ground: &Ground, pod_cidr: Cidr) -> Option<Docker> {
    if ground.stack().is_some() || !network::may_enter_namespaces() {
        return None;
    }
    let owner = owner(config);
    let [_, bridge] = addresses::halves(pod_cidr);
    Some(Docker::new(DockerConfig {
        bridge: format!("cor{owner}"),
        owner,
        subnet: bridge.to_string(),
        gateway: addresses::gateway(bridge),
        endpoint: None,
    }))
}

/// Name of the bridge's interface, and the pods on it.
pub fn bridge(config: &AgentConfig, pod_cidr: Cidr) -> (String, Cidr) {
    let [_, pods] = addresses::halves(pod_cidr);
    (format!("cor{}", owner(config)), pods)
}

/// Name of the device to other nodes' pods: several clusters may have a node on one machine.
pub fn device(config: &AgentConfig) -> String {
    format!("tun{}", owner(config))
}

/// What tells this node's containers from those of others on the machine: its data directory and its name.
fn owner(config: &AgentConfig) -> String {
    let dir = std::path::absolute(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    let digest = Sha256::digest(format!("{}\n{}", dir.display(), config.node_name));
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Why Docker is not offered, or its version.
pub fn offer(docker: Option<&Docker>) -> Result<String, String> {
    let Some(docker) = docker else {
        return Err("Docker needs the pod network, which needs CAP_NET_ADMIN and CAP_SYS_ADMIN".into());
    };
    match &*docker.health().borrow() {
        Health::Ready { version, .. } => Ok(version.clone()),
        Health::Down { reason } => Err(reason.clone()),
        Health::Unknown => Err("Docker has not answered yet".into()),
    }
}

/// The pods of which Docker has containers, as an earlier agent left them. Empty when no engine answers in time.
pub async fn pods(docker: &Docker) -> HashSet<String> {
    let mut health = docker.health();
    let known = health.wait_for(|health| *health != Health::Unknown);
    let is_ready = match tokio::time::timeout(ANSWER_MAX, known).await {
        Ok(Ok(health)) => matches!(*health, Health::Ready { .. }),
        _ => false,
    };
    if !is_ready {
        return HashSet::new();
    }
    match docker.pods().await {
        Ok(uids) => uids.into_iter().collect(),
        Err(error) => {
            tracing::warn!(%error, "containers of an earlier agent not found");
            HashSet::new()
        }
    }
}

/// Sweeps whenever the engine comes up, and from time to time, until shutdown.
pub async fn keep(body: Arc<Body>, shutdown: CancellationToken) {
    let Some(docker) = body.docker.clone() else { return };
    let work = async {
        // what the node should have is known only then
        let _ = body.filled.subscribe().wait_for(|filled| *filled).await;
        let mut health = docker.health();
        loop {
            if health.wait_for(|health| matches!(health, Health::Ready { .. })).await.is_err() {
                return;
            }
            sweep(&body, &docker).await;
            let down = health.wait_for(|health| !matches!(health, Health::Ready { .. }));
            let _ = tokio::time::timeout(SWEEP_PERIOD, down).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

async fn sweep(body: &Body, docker: &Docker) {
    let is_known = |uid: &str| body.world().by_uid(uid).is_some();
    match docker.collect(is_known, ImageLimits::default()).await {
        Ok(collected) => {
            for uid in &collected.pods {
                tracing::info!(uid, "removed containers of a pod that is no more");
            }
            if collected.images.is_empty() {
                return;
            }
            let world = body.world();
            let node = world.get(&body.node_key());
            let message =
                format!("removed {} unused images of {} bytes", collected.images.len(), collected.image_bytes);
            tracing::info!(%message, "images");
            if let Some(node) = node {
                body.recorder.tell(node, false, "ImageGarbageCollected", &message, None);
            }
        }
        Err(error) => tracing::warn!(%error, "Docker's containers and images not looked through"),
    }
}
