//! One start of one container: image, configuration, mounts, guest, and its place in the routes.
//!
//! Every stage fails with the reason Kubernetes has for it; the worker decides about another try. `image` brings the image,
//! `wasm` and `docker` start what it holds; `sandbox` is what all of a pod's containers stand on. Deliberately absent: when to
//! start and when to stop (`pod::plan`).

mod docker;
pub mod env;
pub mod files;
pub mod guest;
pub mod image;
pub mod network;
pub mod origin;
pub mod sandbox;
mod security;
pub mod termination;
mod wasm;

use crate::body::Body;
use crate::fields::PodFacts;
use crate::pod::blueprint::Blueprint;
use crate::pod::state::Slot;
use crate::volumes::{Volumes, mounts};
use env::Scope;
use guest::Guest;
use image::Image;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use netproxy::{Handler, PodGuard};
use runtime::docker::DockerMount;
use runtime::images::Pin;
use runtime::logs::LogFile;
use sandbox::Footing;
use state::Object;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is to be started.
pub struct Start {
    /// The node.
    pub body: Arc<Body>,
    /// The pod.
    pub object: Arc<Object>,
    /// Its spec.
    pub spec: Arc<Blueprint>,
    /// Which container.
    pub slot: Slot,
    /// Its `restartCount`: the number of this instance.
    pub instance: u32,
    /// The pod's address and sandbox.
    pub footing: Footing,
    /// The pod's volumes.
    pub volumes: Arc<Volumes>,
    /// The pod's directory.
    pub pod_dir: PathBuf,
    /// The pod's log directory.
    pub log_dir: PathBuf,
}

/// A container that runs.
pub struct Started {
    /// `containerID`, with its scheme.
    pub id: String,
    /// Digest of its image.
    pub image_id: String,
    /// The guest.
    pub guest: Guest,
    /// A Wasm guest's log; Docker keeps its own.
    pub log: Option<LogFile>,
    /// Its place in the routes, if it is an HTTP component.
    pub door: Option<Door>,
    /// Since when.
    pub since: Timestamp,
    /// The file of its termination message.
    pub messages: PathBuf,
    /// Keeps a Wasm image in the node's store.
    pub pin: Option<Pin>,
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
    /// The image is not here and may not be fetched.
    NeverPull,
    /// The image is not to be had, or is no program.
    Pull,
    /// Something the configuration refers to is missing or wrong.
    Config,
    /// It is Docker's, and the pod was made without a sandbox: Docker was not there, or the image was another.
    Sandbox,
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
            Self::NeverPull => "ErrImageNeverPull",
            Self::Pull => "ErrImagePull",
            Self::Config => "CreateContainerConfigError",
            Self::Sandbox | Self::Create => "CreateContainerError",
            Self::Run => "RunContainerError",
        }
    }

    fn failure(self, error: impl std::fmt::Display) -> StartFailure {
        StartFailure { stage: self, message: error.to_string() }
    }
}

impl Start {
    /// Starts it.
    pub async fn run(self) -> Result<Started, StartFailure> {
        let Some(container) = self.spec.container(self.slot) else {
            return Err(Stage::Create.failure("the container is not in the pod's spec"));
        };
        match self.image(container).await? {
            Image::Wasm { program, config, id, pin } => {
                let mut started = self.run_wasm(container, program, &config, id).await?;
                started.pin = pin;
                Ok(started)
            }
            Image::Docker(image) => self.run_docker(container, image).await,
        }
    }

    /// The container's environment.
    fn variables(&self, container: &Container) -> Result<Vec<(String, String)>, StartFailure> {
        let empty = Pod::default();
        let pod = self.object.view::<Pod>().unwrap_or(&empty);
        let (facts, world) = (self.facts(), self.body.world());
        let namespace = self.object.meta().namespace.as_deref().unwrap_or_default();
        let hostname = hostname(&self.spec, &self.object.meta().name);
        let scope = Scope { pod, namespace, container, world: &world, facts: &facts, hostname: &hostname };
        env::environment(&scope).map_err(|error| Stage::Config.failure(error))
    }

    /// What opening the container's mounts needs.
    fn mounting(&self, container: &Container, variables: &[(String, String)]) -> Mounting {
        Mounting {
            spec: self.spec.clone(),
            wanted: container.volume_mounts.clone(),
            volumes: self.volumes.clone(),
            variables: variables.to_vec(),
            files_dir: self.pod_dir.join("volume-subpaths").join(&container.name),
        }
    }

    fn facts(&self) -> PodFacts {
        self.body.facts(Some(self.footing.address))
    }

    fn tell(&self, container: &Container, warning: bool, reason: &str, message: &str) {
        let path = field_path(self.slot, &container.name);
        self.body.recorder.tell(&self.object, warning, reason, message, Some(path));
    }
}

/// Opens a container's mounts, away from the threads that must not wait for a disk.
struct Mounting {
    spec: Arc<Blueprint>,
    wanted: Option<Vec<VolumeMount>>,
    volumes: Arc<Volumes>,
    variables: Vec<(String, String)>,
    files_dir: PathBuf,
}

impl Mounting {
    fn for_wasm(&self) -> Result<Vec<runtime::Mount>, StartFailure> {
        let wanted = self.wanted.as_deref();
        mounts::mounts(&self.spec, wanted, &self.volumes, &self.files_dir, |text| self.expand(text)).map_err(failure)
    }

    fn for_docker(&self) -> Result<Vec<DockerMount>, StartFailure> {
        let wanted = self.wanted.as_deref();
        let binds = mounts::binds(&self.spec, wanted, &self.volumes, &self.files_dir, |text| self.expand(text));
        let mount = |bind: mounts::Bind| DockerMount {
            host: bind.host,
            container: bind.container,
            read_only: bind.read_only,
            propagation: bind.propagation,
        };
        Ok(binds.map_err(failure)?.into_iter().map(mount).collect())
    }

    fn expand(&self, text: &str) -> String {
        let look_up = |name: &str| self.variables.iter().find(|(known, _)| known == name).map(|(_, v)| v.clone());
        env::expand(text, look_up)
    }
}

fn failure(error: mounts::MountError) -> StartFailure {
    let stage = if error.is_spec() { Stage::Config } else { Stage::Create };
    stage.failure(chain(&error))
}

/// The part of the pod that an event about a container concerns.
pub fn field_path(slot: Slot, name: &str) -> String {
    match slot {
        Slot::Init(_) => format!("spec.initContainers{{{name}}}"),
        Slot::Main(_) => format!("spec.containers{{{name}}}"),
        Slot::Ephemeral(_) => format!("spec.ephemeralContainers{{{name}}}"),
    }
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

/// The pod's host name.
pub fn hostname(spec: &PodSpec, name: &str) -> String {
    const HOSTNAME_CHARS_MAX: usize = 63;
    let hostname = spec.hostname.as_deref().filter(|hostname| !hostname.is_empty()).unwrap_or(name);
    hostname.chars().take(HOSTNAME_CHARS_MAX).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// A limit in thousandths.
fn limit(container: &Container, resource: &str) -> Option<i128> {
    amount(container.resources.as_ref()?.limits.as_ref()?, resource)
}

/// A request in thousandths; a missing one is the limit.
fn request(container: &Container, resource: &str) -> Option<i128> {
    let own = container.resources.as_ref()?.requests.as_ref().and_then(|requests| amount(requests, resource));
    own.or_else(|| limit(container, resource))
}

fn amount(quantities: &BTreeMap<String, Quantity>, resource: &str) -> Option<i128> {
    manifests::quantity::milli(quantities.get(resource)?).filter(|milli| *milli > 0)
}
