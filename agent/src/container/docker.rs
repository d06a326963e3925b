//! Starts a container in Docker: what a pod's spec says of it, in Docker's words.

use super::guest::Guest;
use super::{Stage, Start, StartFailure, Started, env, files, limit, request, security, termination};
use crate::pod::docker_id;
use k8s_openapi::api::core::v1::Container;
use runtime::docker::{DockerContainerSpec, DockerError, DockerMount, DockerResources, ImageInfo, PodId};
use std::path::PathBuf;

impl Start {
    /// Dropping this future while Docker works leaves a container at most, which the next start of the same name replaces.
    pub(super) async fn run_docker(&self, container: &Container, image: ImageInfo) -> Result<Started, StartFailure> {
        let (Some(docker), Some(sandbox)) = (&self.body.docker, &self.footing.sandbox) else {
            let message = "the pod has no network namespace that a container of Docker could join; it is made again";
            return Err(Stage::Sandbox.failure(message));
        };
        let variables = self.variables(container)?;
        let security = security::security(&self.spec, container, &self.body.config.data_dir)
            .map_err(|error| Stage::Config.failure(super::chain(&error)))?;
        let (mounts, messages) = self.prepare_docker(container, &variables).await?;
        let image_id = image.digests.first().cloned().unwrap_or_else(|| format!("docker://{}", image.id));
        let meta = self.object.meta();
        let spec = DockerContainerSpec {
            pod: PodId {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
            },
            name: container.name.clone(),
            attempt: self.instance,
            sandbox_id: Some(sandbox.id.clone()),
            image: image.id,
            image_name: container.image.clone().unwrap_or_default(),
            command: env::words(container.command.as_deref(), &variables),
            args: env::words(container.args.as_deref(), &variables),
            env: variables,
            working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
            mounts,
            devices: Vec::new(),
            resources: self.resources(container),
            security,
            tty: container.tty == Some(true),
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            stop_signal: container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone()),
            share_processes: self.spec.share_process_namespace == Some(true),
            share_pid_of: self.spec.target(self.slot).map(ToOwned::to_owned),
            host_pid: self.spec.host_pid == Some(true),
            host_ipc: self.spec.host_ipc == Some(true),
        };
        let running = docker.start(spec).await.map_err(|error| {
            let stage = match &error {
                DockerError::Config { .. } => Stage::Config,
                DockerError::Run { .. } => Stage::Run,
                _ => Stage::Create,
            };
            stage.failure(super::chain(&error))
        })?;
        self.tell(container, false, "Created", &format!("Created container: {}", container.name));
        self.tell(container, false, "Started", &format!("Started container {}", container.name));
        Ok(Started {
            id: docker_id(running.id()),
            image_id,
            since: running.started_at(),
            guest: Guest::Docker(running),
            log: None,
            door: None,
            messages,
            pin: None,
        })
    }

    async fn prepare_docker(
        &self,
        container: &Container,
        variables: &[(String, String)],
    ) -> Result<(Vec<DockerMount>, PathBuf), StartFailure> {
        let messages = termination::file(&self.pod_dir, &container.name, self.instance);
        let message_path = container.termination_message_path.clone().unwrap_or_else(|| termination::PATH.into());
        let own = files::mounts(&self.pod_dir);
        let mounting = self.mounting(container, variables);
        let work = move || {
            let mut mounts = mounting.for_docker()?;
            let taken = |path: &str, mounts: &[DockerMount]| mounts.iter().any(|mount| mount.container == path);
            for (host, path) in own {
                if !taken(path, &mounts) {
                    let container = path.to_owned();
                    mounts.push(DockerMount { host, container, read_only: false, propagation: None });
                }
            }
            if !message_path.is_empty() && !taken(&message_path, &mounts) {
                termination::make(&messages)
                    .map_err(|error| Stage::Create.failure(format!("{message_path}: {error}")))?;
                let host = messages.clone();
                mounts.push(DockerMount { host, container: message_path, read_only: false, propagation: None });
            }
            Ok((mounts, messages))
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| Stage::Create.failure(error))?
    }

    fn resources(&self, container: &Container) -> DockerResources {
        let bytes = |milli: i128| u64::try_from(milli / 1000).ok();
        let memory_request = request(container, "memory").and_then(bytes);
        DockerResources {
            cpu_request_millis: request(container, "cpu").and_then(|milli| u64::try_from(milli).ok()),
            cpu_limit_millis: limit(container, "cpu").and_then(|milli| u64::try_from(milli).ok()),
            memory_request_bytes: memory_request,
            memory_limit_bytes: limit(container, "memory").and_then(bytes),
            oom_score_adj: oom_score(
                manifests::pods::qos(&self.spec),
                memory_request.unwrap_or(0),
                self.body.machine.memory_bytes(),
            ),
        }
    }
}

/// The kubelet's rule: who asked for little goes first.
fn oom_score(qos: &str, request_bytes: u64, capacity_bytes: u64) -> i64 {
    const GUARANTEED: i64 = -997;
    const BEST_EFFORT: i64 = 1000;
    match qos {
        "Guaranteed" => GUARANTEED,
        "BestEffort" => BEST_EFFORT,
        _ => {
            let share = u128::from(request_bytes) * 1000 / u128::from(capacity_bytes.max(1));
            let score = 1000 - i64::try_from(share).unwrap_or(i64::MAX).min(1000);
            score.clamp(3, BEST_EFFORT - 1)
        }
    }
}
