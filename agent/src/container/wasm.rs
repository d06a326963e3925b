//! Starts a program in this process: its sandbox, its log, and, an HTTP component, its place in the routes.

use super::guest::Guest;
use super::network::{PodNetwork, Served};
use super::{Door, Stage, Start, StartFailure, Started, env, limit, termination};
use crate::identity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use netproxy::Handler;
use runtime::images::ImageConfig;
use runtime::logs::LogFile;
use runtime::{Program, Shape};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// Annotation: how many requests one instance of an HTTP component may serve.
const REUSE_ANNOTATION: &str = "coracle.dev/instance-reuse";
/// Annotation: run programs of WASI preview 3.
const P3_ANNOTATION: &str = "coracle.dev/wasi-p3";
/// Port of an HTTP component that names none.
const HTTP_PORT: u16 = 8080;

impl Start {
    /// After the guest runs there is no point at which dropping this future would lose it.
    pub(super) async fn run_wasm(
        &self,
        container: &Container,
        program: Program,
        config: &ImageConfig,
        image_id: String,
    ) -> Result<Started, StartFailure> {
        let own = self.variables(container)?;
        // the image's come first, so that the pod's replace them
        let mut variables = config.env.clone();
        variables.retain(|(name, _)| !own.iter().any(|(known, _)| known == name));
        variables.extend(own);
        let args = env::argv(container, config, &variables);
        let (mounts, log, messages) = self.prepare_wasm(container, &variables).await?;
        let namespace = self.object.meta().namespace.as_deref().unwrap_or_default();
        let guest = runtime::ContainerSpec {
            name: format!("{namespace}/{}/{}", self.object.meta().name, container.name),
            program: program.clone(),
            args,
            env: variables,
            working_dir: container
                .working_dir
                .clone()
                .filter(|dir| !dir.is_empty())
                .or_else(|| config.working_dir.clone()),
            mounts,
            memory_bytes_max: limit(container, "memory").and_then(|milli| u64::try_from(milli / 1000).ok()),
            cpu_millis_max: limit(container, "cpu").and_then(|milli| u32::try_from(milli).ok()),
            stdout: log.stdout(),
            stderr: log.stderr(),
            network: Arc::new(PodNetwork::new(&self.body, &self.object, &self.spec, &self.footing)),
            reuse_requests_max: self.annotation(REUSE_ANNOTATION).and_then(|n| n.parse().ok()).unwrap_or(1).max(1),
            p3: self.annotation(P3_ANNOTATION) == Some("true"),
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            tty: container.tty == Some(true),
        };
        self.tell(container, false, "Created", &format!("Created container: {}", container.name));
        let mut started = self.launch(container, guest, log, messages, &program)?;
        started.image_id = image_id;
        Ok(started)
    }

    /// No await from here on: what runs is handed over.
    fn launch(
        &self,
        container: &Container,
        guest: runtime::ContainerSpec,
        log: LogFile,
        messages: PathBuf,
        program: &Program,
    ) -> Result<Started, StartFailure> {
        let running = self.body.wasm.start(guest).map_err(|error| Stage::Run.failure(super::chain(&error)))?;
        let since = Timestamp::now();
        let door = match program.shape() {
            Shape::Http => match self.open_door(container, &running) {
                Ok(door) => Some(door),
                Err(error) => {
                    running.kill();
                    log.close();
                    return Err(error);
                }
            },
            Shape::Command | Shape::CommandComponent => None,
        };
        self.tell(container, false, "Started", &format!("Started container {}", container.name));
        let id = identity::container_id(&self.object.meta().uid, &container.name, self.instance, since.as_nanosecond());
        Ok(Started {
            id: format!("wasmtime://{id}"),
            image_id: program.digest().to_owned(),
            guest: Guest::Wasm(running),
            log: Some(log),
            door,
            since,
            messages,
            pin: None,
        })
    }

    /// In a sandbox the component listens where the pod's other containers find it on localhost.
    fn open_door(&self, container: &Container, running: &runtime::Container) -> Result<Door, StartFailure> {
        let port = http_port(container);
        let handler: Arc<dyn Handler> = Arc::new(Served(running.clone()));
        let address = SocketAddr::new(self.footing.address, port);
        let namespace = self.footing.sandbox.as_ref().and_then(|sandbox| sandbox.namespace.as_ref());
        let guard = match namespace {
            None => self.body.proxy.serve_pod(address, handler.clone()),
            Some(namespace) => {
                let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
                let listening = namespace.listen(any);
                let served = listening.and_then(|on| self.body.proxy.serve_pod_on(on, address, handler.clone()));
                served.map_err(|error| {
                    Stage::Run.failure(format!("listen on port {port} in the pod's network: {error}"))
                })?
            }
        };
        Ok(Door { port, handler, guard })
    }

    /// Opens mounts and log away from the threads that must not wait for a disk.
    async fn prepare_wasm(
        &self,
        container: &Container,
        variables: &[(String, String)],
    ) -> Result<(Vec<runtime::Mount>, LogFile, PathBuf), StartFailure> {
        let (log_dir, instance) = (self.log_dir.join(&container.name), self.instance);
        let limits = runtime::logs::LogLimits {
            file_bytes_max: self.body.config.logs.file_bytes_max,
            files_max: self.body.config.logs.files_max as usize,
        };
        let messages = termination::file(&self.pod_dir, &container.name, self.instance);
        let message_path = container.termination_message_path.clone().unwrap_or_else(|| termination::PATH.into());
        let mounts = self.mounting(container, variables);
        let work = move || {
            let mut shown = mounts.for_wasm()?;
            let log = LogFile::open(&log_dir, instance, limits)
                .map_err(|error| Stage::Create.failure(format!("cannot open the container's log: {error}")))?;
            let message = termination::show(&messages, &message_path, &shown);
            shown.extend(message.map_err(|error| Stage::Create.failure(format!("{message_path}: {error}")))?);
            Ok((shown, log, messages))
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| Stage::Create.failure(error))?
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.object.meta().annotations.get(name).map(String::as_str)
    }
}

/// The port an HTTP component is served on: its first container port.
pub fn http_port(container: &Container) -> u16 {
    let first = container.ports.as_deref().and_then(|ports| ports.first());
    first.and_then(|port| u16::try_from(port.container_port).ok()).unwrap_or(HTTP_PORT)
}
