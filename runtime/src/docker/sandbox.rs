//! A pod's sandbox: made, adopted, replaced, removed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, EndpointIpamConfig, EndpointSettings, HostConfig,
    HostConfigLogConfig, NetworkingConfig,
};
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptions};

use super::error::{Cause, DockerError, cause, engine, found, refused};
use super::spec::{PodId, Sandbox, SandboxSpec};
use super::{Docker, KIND_SANDBOX, pause};
use crate::NetworkNamespace;

/// The sandbox is the last to go when the node is out of memory, as with the kubelet.
const OOM_SCORE_ADJ: i64 = -998;
/// The least share of the CPU there is.
const CPU_SHARES: i64 = 2;
/// Times an act is tried again after what stood in its way was removed.
const TRIES_MAX: usize = 3;
/// How long someone else's removal is waited for, and how often it is looked at.
const REMOVAL_MAX: Duration = Duration::from_secs(30);
const REMOVAL_LOOK: Duration = Duration::from_millis(50);
/// How long a started process may take to become its program, and how often it is looked at.
const PROGRAM_MAX: Duration = Duration::from_secs(5);
const PROGRAM_LOOK: Duration = Duration::from_millis(1);

impl Docker {
    /// The pod's sandbox: the one that runs, else a new one. Who drops the future leaves a sandbox that the next call
    /// finds, or [`Docker::remove_pod`] removes.
    pub async fn sandbox(&self, spec: SandboxSpec) -> Result<Sandbox, DockerError> {
        let docker = self.clone();
        let making = tokio::spawn(async move {
            let lock = docker.0.pods.lock(&spec.pod.uid);
            let _alone = lock.write().await;
            docker.make_sandbox(&spec).await
        });
        making
            .await
            .unwrap_or_else(|error| Err(DockerError::Engine { act: "make a sandbox", detail: error.to_string() }))
    }

    async fn make_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, DockerError> {
        self.prepare(false).await?;
        let client = self.0.connection.client()?;
        let name = format!("coracle_POD_{}_{}_{}", spec.pod.name, spec.pod.namespace, spec.pod.uid);
        let failed =
            |detail: String| DockerError::Sandbox { pod: format!("{}/{}", spec.pod.namespace, spec.pod.name), detail };
        for _ in 0..TRIES_MAX {
            let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
            let id = match client.create_container(Some(options), self.sandbox_body(spec)).await.map_err(cause) {
                Ok(created) => created.id,
                Err(Cause::Lost(detail)) => return Err(DockerError::Unreachable { detail }),
                // It is there already: adopted when it runs, else in the way.
                Err(Cause::Refused(409, _)) => {
                    let existing = found(client.inspect_container(&name, None).await);
                    if let Some(existing) = existing.map_err(engine("inspect a sandbox"))? {
                        match self.adopt_sandbox(spec, &existing).await {
                            Some(sandbox) => return sandbox,
                            None => self.remove(existing.id.as_deref().unwrap_or(&name)).await?,
                        }
                    }
                    continue;
                }
                // The image or the network has been removed by someone.
                Err(Cause::Refused(404, _)) => {
                    self.prepare(true).await?;
                    continue;
                }
                Err(Cause::Refused(_, detail)) => return Err(failed(detail)),
            };
            match client.start_container(&id, None).await.map_err(cause) {
                Ok(()) => {}
                Err(Cause::Lost(detail)) => return Err(DockerError::Unreachable { detail }),
                Err(Cause::Refused(status, detail)) => {
                    self.remove(&id).await?;
                    if status == 404 && detail.contains(&self.network_name()) {
                        self.prepare(true).await?;
                        continue;
                    }
                    return Err(failed(detail));
                }
            }
            let made = client.inspect_container(&id, None).await.map_err(refused(failed))?;
            return match self.adopt_sandbox(spec, &made).await {
                Some(Ok(sandbox)) => Ok(sandbox),
                problem => {
                    self.remove(&id).await?;
                    problem.unwrap_or_else(|| Err(failed("it ended at once".to_owned())))
                }
            };
        }
        Err(failed(format!("something else keeps making or removing {name}")))
    }

    /// `None`: it does not run, or is not what is wanted.
    async fn adopt_sandbox(
        &self,
        spec: &SandboxSpec,
        found: &ContainerInspectResponse,
    ) -> Option<Result<Sandbox, DockerError>> {
        let state = found.state.as_ref()?;
        let pid = state.pid.filter(|pid| *pid > 0 && state.running == Some(true) && state.paused != Some(true))?;
        let id = found.id.clone()?;
        if spec.address.is_none() {
            return Some(Ok(Sandbox { id, namespace: None, address: None }));
        }
        let address = Some(self.address(found)?);
        Some(namespace(&spec.pod, pid).await.map(|namespace| Sandbox { id, namespace: Some(namespace), address }))
    }

    /// Its address on the pod network.
    pub(super) fn address(&self, found: &ContainerInspectResponse) -> Option<IpAddr> {
        let networks = found.network_settings.as_ref()?.networks.as_ref()?;
        networks.get(&self.network_name())?.ip_address.as_ref()?.parse().ok()
    }

    fn sandbox_body(&self, spec: &SandboxSpec) -> ContainerCreateBody {
        let network = self.network_name();
        let host = || "host".to_owned();
        let endpoint = |address: IpAddr| EndpointSettings {
            ipam_config: Some(EndpointIpamConfig { ipv4_address: Some(address.to_string()), ..Default::default() }),
            ..Default::default()
        };
        ContainerCreateBody {
            image: Some(pause::image()),
            entrypoint: Some(vec![pause::PROGRAM.to_owned()]),
            // For people who look at the node's processes, and to know the process by.
            cmd: Some(vec![spec.pod.kubelet()]),
            hostname: spec.address.is_some().then(|| spec.hostname.clone()),
            labels: Some(self.labels(&spec.pod, KIND_SANDBOX, "POD")),
            networking_config: spec.address.map(|address| NetworkingConfig {
                endpoints_config: Some(HashMap::from([(network.clone(), endpoint(address))])),
            }),
            host_config: Some(HostConfig {
                network_mode: Some(if spec.address.is_some() { network } else { host() }),
                ipc_mode: Some(if spec.host_ipc { host() } else { "shareable".to_owned() }),
                pid_mode: spec.host_pid.then(host),
                sysctls: Some(spec.sysctls.iter().cloned().collect()),
                log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
                cpu_shares: Some(CPU_SHARES),
                oom_score_adj: Some(OOM_SCORE_ADJ.max(self.0.oom_score_adj_min)),
                cap_drop: Some(vec!["ALL".to_owned()]),
                security_opt: Some(vec!["no-new-privileges".to_owned()]),
                readonly_rootfs: Some(true),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(super) fn labels(&self, pod: &PodId, kind: &str, container: &str) -> HashMap<String, String> {
        [
            (super::LABEL_OWNER, self.0.config.owner.as_str()),
            (super::LABEL_KIND, kind),
            (super::LABEL_POD_NAME, &pod.name),
            (super::LABEL_POD_NAMESPACE, &pod.namespace),
            (super::LABEL_POD_UID, &pod.uid),
            (super::LABEL_CONTAINER, container),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
    }

    /// Removes a container, running or not, with the volumes its image asked for. Absent is fine.
    pub async fn remove(&self, id: &str) -> Result<(), DockerError> {
        let client = self.0.connection.client()?;
        let options = RemoveContainerOptions { v: true, force: true, link: false };
        match client.remove_container(id, Some(options)).await.map_err(cause) {
            Ok(()) | Err(Cause::Refused(404, _)) => Ok(()),
            // Someone else is removing it.
            Err(Cause::Refused(409, _)) => self.removed(id).await,
            Err(Cause::Refused(_, detail)) => Err(DockerError::Engine { act: "remove a container", detail }),
            Err(Cause::Lost(detail)) => Err(DockerError::Unreachable { detail }),
        }
    }

    /// Waits until a container that is being removed is gone.
    async fn removed(&self, id: &str) -> Result<(), DockerError> {
        let client = self.0.connection.client()?;
        let end = Instant::now() + REMOVAL_MAX;
        while found(client.inspect_container(id, None).await).map_err(engine("inspect a container"))?.is_some() {
            if Instant::now() > end {
                let detail = format!("{id} is still being removed after {REMOVAL_MAX:?}");
                return Err(DockerError::Engine { act: "remove a container", detail });
            }
            tokio::time::sleep(REMOVAL_LOOK).await;
        }
        Ok(())
    }
}

/// The network namespace of process `pid`, which must be the sandbox of `pod` as this machine sees it.
async fn namespace(pod: &PodId, pid: i64) -> Result<NetworkNamespace, DockerError> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let foreign = |detail: String| DockerError::Unsupported {
        detail: format!("the processes of Docker cannot be seen from here; is it on another machine? ({detail})"),
    };
    // Opened first: were the process replaced by another in between, the name would not be right.
    let namespace = NetworkNamespace::open(&process.join("ns/net")).map_err(|error| foreign(error.to_string()))?;
    let expected = format!("{}\0{}\0", pause::PROGRAM, pod.kubelet());
    let end = Instant::now() + PROGRAM_MAX;
    loop {
        let command = std::fs::read(process.join("cmdline")).map_err(|error| foreign(error.to_string()))?;
        if command == expected.as_bytes() {
            return Ok(namespace);
        }
        // Docker says that it runs a moment before the process has become the program.
        if Instant::now() > end {
            return Err(foreign(format!("process {pid} is not the sandbox")));
        }
        tokio::time::sleep(PROGRAM_LOOK).await;
    }
}
