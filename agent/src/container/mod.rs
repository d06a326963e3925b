//! One start of one container: image, configuration, mounts, log, guest, and its place in the routes.
//!
//! Every stage fails with the reason Kubernetes has for it; the worker decides about another try. Deliberately absent:
//! when to start and when to stop (`pod::plan`).

pub mod env;
pub mod network;

use crate::body::Body;
use crate::fields::PodFacts;
use crate::identity;
use crate::pod::state::Slot;
use crate::volumes::{Volumes, mounts};
use env::Scope;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpecView, Pod, PodSpec};
use netproxy::{Handler, PodGuard};
use network::{PodNetwork, Served};
use runtime::logs::LogFile;
use runtime::{LoadError, Program, Shape};
use state::Object;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Annotation: how many requests one instance of an HTTP component may serve.
const REUSE_ANNOTATION: &str = "coracle.dev/instance-reuse";
/// Annotation: run programs of WASI preview 3.
const P3_ANNOTATION: &str = "coracle.dev/wasi-p3";
/// Port of an HTTP component that names none.
const HTTP_PORT: u16 = 8080;

/// What is to be started.
pub struct Start {
    /// The node.
    pub body: Arc<Body>,
    /// The pod.
    pub object: Arc<Object>,
    /// Which container.
    pub slot: Slot,
    /// Its `restartCount`: the number of this instance.
    pub instance: u32,
    /// The pod's address.
    pub address: IpAddr,
    /// The pod's volumes.
    pub volumes: Arc<Volumes>,
    /// The pod's directory.
    pub pod_dir: PathBuf,
    /// The pod's log directory.
    pub log_dir: PathBuf,
}

/// A container that runs.
pub struct Started {
    /// `containerID` without the scheme.
    pub id: String,
    /// Digest of its program.
    pub image_id: String,
    /// The guest.
    pub container: runtime::Container,
    /// Its log.
    pub log: LogFile,
    /// Its place in the routes, if it is an HTTP component.
    pub door: Option<Door>,
    /// Since when.
    pub since: Timestamp,
}

/// The HTTP side of a container.
pub struct Door {
    /// The container port.
    pub port: u16,
    /// Answers in process.
    pub handler: Arc<dyn Handler>,
    /// Keeps it reachable.
    pub guard: PodGuard,
}

/// Why it did not start.
#[derive(Debug)]
pub struct StartFailure {
    /// Which kind of failure.
    pub stage: Stage,
    /// For the status and the event.
    pub message: String,
}

/// The stage a start failed in; each has its own reason and its own way to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The image's name cannot be understood.
    ImageName,
    /// The image is not to be had, or is no program.
    Pull,
    /// Something the environment refers to is missing.
    Config,
    /// The container cannot be made.
    Create,
    /// The guest could not begin.
    Run,
}

impl Stage {
    /// `state.waiting.reason`
    pub fn reason(self) -> &'static str {
        match self {
            Self::ImageName => "InvalidImageName",
            Self::Pull => "ErrImagePull",
            Self::Config => "CreateContainerConfigError",
            Self::Create => "CreateContainerError",
            Self::Run => "RunContainerError",
        }
    }

    fn failure(self, error: impl std::fmt::Display) -> StartFailure {
        StartFailure { stage: self, message: error.to_string() }
    }
}

impl Start {
    /// Starts it. After the guest runs there is no point at which dropping this future would lose it.
    pub async fn run(self) -> Result<Started, StartFailure> {
        let empty = Pod::default();
        let pod = self.object.view::<Pod>().unwrap_or(&empty);
        let spec = pod.spec.clone().unwrap_or_default();
        let Some(container) = crate::pod::state::container_spec(&spec, self.slot) else {
            return Err(Stage::Create.failure("the container is not in the pod's spec"));
        };
        self.refuse_docker(&spec)?;
        let (program, file_name) = self.pull(container).await?;
        let facts = self.facts();
        let world = self.body.world();
        let namespace = self.object.meta().namespace.as_deref().unwrap_or_default();
        let hostname = hostname(&spec, &self.object.meta().name);
        let scope = Scope { pod, namespace, container, world: &world, facts: &facts, hostname: &hostname };
        let variables = env::environment(&scope).map_err(|error| Stage::Config.failure(error))?;
        let args = env::argv(container, &file_name, &variables);
        let (mounts, log) = self.prepare_files(&spec, container, &variables).await?;
        let guest = runtime::ContainerSpec {
            name: format!("{namespace}/{}/{}", self.object.meta().name, container.name),
            program: program.clone(),
            args,
            env: variables,
            working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
            mounts,
            memory_bytes_max: limit(container, "memory").and_then(|milli| u64::try_from(milli / 1000).ok()),
            cpu_millis_max: limit(container, "cpu").and_then(|milli| u32::try_from(milli).ok()),
            stdout: log.stdout(),
            stderr: log.stderr(),
            network: Arc::new(PodNetwork {
                address: self.address,
                namespace: namespace.into(),
                proxy: self.body.proxy.clone(),
            }),
            reuse_requests_max: self.annotation(REUSE_ANNOTATION).and_then(|n| n.parse().ok()).unwrap_or(1).max(1),
            p3: self.annotation(P3_ANNOTATION) == Some("true"),
        };
        self.tell(container, false, "Created", &format!("Created container: {}", container.name));
        self.launch(container, guest, log, &program)
    }

    /// No await from here on: what runs is handed over.
    fn launch(
        &self,
        container: &ContainerSpecView,
        guest: runtime::ContainerSpec,
        log: LogFile,
        program: &Program,
    ) -> Result<Started, StartFailure> {
        let running = self.body.wasm.start(guest).map_err(|error| Stage::Run.failure(chain(&error)))?;
        let since = Timestamp::now();
        let door = (program.shape() == Shape::Http).then(|| {
            let port = http_port(container);
            let handler: Arc<dyn Handler> = Arc::new(Served(running.clone()));
            let guard = self.body.proxy.serve_pod(SocketAddr::new(self.address, port), handler.clone());
            Door { port, handler, guard }
        });
        self.tell(container, false, "Started", &format!("Started container {}", container.name));
        Ok(Started {
            id: identity::container_id(&self.object.meta().uid, &container.name, self.instance, since.as_nanosecond()),
            image_id: program.digest().to_owned(),
            container: running,
            log,
            door,
            since,
        })
    }

    /// This node has one runtime; a pod that asks for the other is told so.
    fn refuse_docker(&self, spec: &PodSpec) -> Result<(), StartFailure> {
        match spec.runtime_class_name.as_deref() {
            None | Some("" | "wasm") => Ok(()),
            Some(class) => Err(Stage::Create
                .failure(format!("this node offers only the runtime class \"wasm\"; the pod asks for {class:?}"))),
        }
    }

    /// Resolves and loads the image; the file's name stands in for a missing command.
    async fn pull(&self, container: &ContainerSpecView) -> Result<(Program, String), StartFailure> {
        let image = container.image.as_deref().unwrap_or_default();
        let path = runtime::images::resolve(image).map_err(|error| {
            let stage = if error.reason() == "InvalidImageName" { Stage::ImageName } else { Stage::Pull };
            stage.failure(chain(&error))
        })?;
        let began = Instant::now();
        let program = self.body.wasm.load(&path).await.map_err(|error| match error {
            LoadError::Engine { .. } => Stage::Create.failure(chain(&error)),
            error => Stage::Pull.failure(format!("failed to pull image {image:?}: {}", chain(&error))),
        })?;
        let took = began.elapsed().as_millis();
        let message = if self.body.images.lock().insert(program.digest().to_owned()) {
            format!("Successfully pulled image {image:?} in {took}ms ({took}ms including waiting)")
        } else {
            format!("Container image {image:?} already present on machine")
        };
        self.tell(container, false, "Pulled", &message);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok((program, name.unwrap_or_else(|| container.name.clone())))
    }

    /// Opens mounts and log away from the threads that must not wait for a disk.
    async fn prepare_files(
        &self,
        spec: &PodSpec,
        container: &ContainerSpecView,
        variables: &[(String, String)],
    ) -> Result<(Vec<runtime::Mount>, LogFile), StartFailure> {
        let (spec, wanted) = (spec.clone(), container.volume_mounts.clone());
        let (volumes, variables) = (self.volumes.clone(), variables.to_vec());
        let files_dir = self.pod_dir.join("volume-subpaths").join(&container.name);
        let (log_dir, instance) = (self.log_dir.join(&container.name), self.instance);
        let limits = runtime::logs::LogLimits {
            file_bytes_max: self.body.config.logs.file_bytes_max,
            files_max: self.body.config.logs.files_max as usize,
        };
        let work = move || {
            let look_up = |name: &str| variables.iter().find(|(known, _)| known == name).map(|(_, v)| v.clone());
            let expand = |text: &str| env::expand(text, look_up);
            let mounts = mounts::mounts(&spec, wanted.as_deref(), &volumes, &files_dir, expand)
                .map_err(|error| Stage::Create.failure(chain(&error)))?;
            let log = LogFile::open(&log_dir, instance, limits)
                .map_err(|error| Stage::Create.failure(format!("cannot open the container's log: {error}")))?;
            Ok((mounts, log))
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| Stage::Create.failure(error))?
    }

    fn facts(&self) -> PodFacts {
        self.body.facts(Some(self.address))
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.object.meta().annotations.get(name).map(String::as_str)
    }

    fn tell(&self, container: &ContainerSpecView, warning: bool, reason: &str, message: &str) {
        let path = field_path(self.slot, &container.name);
        self.body.recorder.tell(&self.object, warning, reason, message, Some(path));
    }
}

/// The part of the pod that an event about a container concerns.
pub fn field_path(slot: Slot, name: &str) -> String {
    match slot {
        Slot::Init(_) => format!("spec.initContainers{{{name}}}"),
        Slot::Main(_) => format!("spec.containers{{{name}}}"),
    }
}

/// The port an HTTP component is served on: its first container port.
pub fn http_port(container: &ContainerSpecView) -> u16 {
    let first = container.ports.as_deref().and_then(|ports| ports.first());
    first.and_then(|port| u16::try_from(port.container_port).ok()).unwrap_or(HTTP_PORT)
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Where a pod's logs are, as the kubelet has it.
pub fn log_dir(data_dir: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    data_dir.join("logs/pods").join(format!("{namespace}_{name}_{uid}"))
}

fn hostname(spec: &PodSpec, name: &str) -> String {
    const HOSTNAME_CHARS_MAX: usize = 63;
    let hostname = spec.hostname.as_deref().filter(|hostname| !hostname.is_empty()).unwrap_or(name);
    hostname.chars().take(HOSTNAME_CHARS_MAX).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// A limit in thousandths.
fn limit(container: &ContainerSpecView, resource: &str) -> Option<i128> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    manifests::quantity::milli(limits.get(resource)?).filter(|milli| *milli > 0)
}
