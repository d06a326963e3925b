//! The image of a container: which runtime it is for, and how it comes to this node.
//!
//! A reference that ends in `.wasm` says so itself; of all others the image decides. What is here already is not asked of a
//! registry, and what the master has is not either ([`super::origin`]). Deliberately absent: when to try again (`pod::plan`).

use super::{Stage, Start, StartFailure, chain};
use crate::body::Body;
use crate::pod::blueprint::Blueprint;
use k8s_openapi::api::core::v1::{Container, LocalObjectReference, Secret, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use runtime::docker::{Docker, Health, ImageInfo, RegistryAuth};
use runtime::images::{self, Archive, Credential, ImageConfig, ImageError, Parsed, Pin, PullError, PullPolicy};
use runtime::{LoadError, Program};
use state::Object;
use std::path::Path;

use std::time::{Duration, Instant};

/// Which runtime an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// wasmtime, in this process.
    Wasm,
    /// Docker.
    Docker,
}

/// An image that is here.
pub enum Image {
    /// A program, how its image wants it to be run, and what keeps it in the node's store.
    Wasm {
        /// What runs.
        program: Program,
        /// What the image says of it.
        config: ImageConfig,
        /// `imageID`
        id: String,
        /// Held while the container runs.
        pin: Option<Pin>,
    },
    /// An image of Docker.
    Docker(ImageInfo),
}

/// Which runtime a container of a pod is for. A reference that nobody can tell is Docker's where there is Docker, whose error is
/// then shown.
pub async fn kind(body: &Body, object: &Object, spec: &Blueprint, container: &Container) -> Kind {
    match handler(body, spec).as_deref() {
        Some("wasm") => return Kind::Wasm,
        Some("docker") => return Kind::Docker,
        _ => {}
    }
    let image = container.image.as_deref().unwrap_or_default();
    let Ok(Parsed::Registry(_)) = images::parse(image) else { return Kind::Wasm };
    let ready = ready_docker(body);
    if let Some(docker) = ready
        && matches!(docker.has_image(image).await, Ok(Some(_)))
    {
        return Kind::Docker;
    }
    match body.images.kind(image, &credentials(body, object, spec)).await {
        Ok(images::Kind::Wasm) => Kind::Wasm,
        Ok(images::Kind::Container) => Kind::Docker,
        Err(_) if ready.is_some() => Kind::Docker,
        Err(_) => Kind::Wasm,
    }
}

fn ready_docker(body: &Body) -> Option<&Docker> {
    let docker = body.docker.as_ref()?;
    matches!(*docker.health().borrow(), Health::Ready { .. }).then_some(docker)
}

/// The handler of the pod's RuntimeClass.
fn handler(body: &Body, spec: &Blueprint) -> Option<String> {
    let name = spec.runtime_class_name.as_deref().filter(|name| !name.is_empty())?;
    let world = body.world();
    let class = world.view::<RuntimeClass>("", name);
    Some(class.map_or_else(|| name.to_owned(), |class| class.handler.clone()))
}

/// What the pod and its service account may show to registries. A Secret that is missing or is none of registries is passed over,
/// as the kubelet does.
fn credentials(body: &Body, object: &Object, spec: &Blueprint) -> Vec<Credential> {
    let namespace = object.meta().namespace.as_deref().unwrap_or_default();
    let world = body.world();
    let account = spec.service_account_name.as_deref().unwrap_or("default");
    let account = world.view::<ServiceAccount>(namespace, account).and_then(|a| a.image_pull_secrets.as_deref());
    let own: &[LocalObjectReference] = spec.image_pull_secrets.as_deref().unwrap_or_default();
    let named = own.iter().chain(account.unwrap_or_default());
    let mut all = Vec::new();
    for secret in named.filter_map(|reference| world.view::<Secret>(namespace, &reference.name)) {
        let value = |key: &str| secret.data.as_ref()?.get(key).map(|value| value.0.as_slice());
        match images::credentials_of(secret.type_.as_deref().unwrap_or_default(), value) {
            Ok(credentials) => all.extend(credentials),
            Err(error) => tracing::warn!(pod = %object.key(), %error, "imagePullSecrets"),
        }
    }
    all
}

fn is_container_image(error: &ImageError) -> bool {
    matches!(error, ImageError::Pull { source, .. } if matches!(**source, PullError::NotWasm { .. }))
}

/// Who a registry is asked as, the best fit first; as nobody if nobody fits.
fn logins(image: &str, credentials: &[Credential]) -> Vec<Option<RegistryAuth>> {
    let Ok(Parsed::Registry(reference)) = images::parse(image) else { return vec![None] };
    let mut logins: Vec<_> = images::matching(credentials, &reference).into_iter().map(login).map(Some).collect();
    if logins.is_empty() {
        logins.push(None);
    }
    logins
}

fn login(credential: &Credential) -> RegistryAuth {
    RegistryAuth {
        username: credential.username.clone(),
        password: credential.password.clone(),
        identity_token: None,
        server: credential.server.clone(),
    }
}

impl Start {
    /// Brings the image here, by the container's pull policy.
    pub(super) async fn image(&self, container: &Container) -> Result<Image, StartFailure> {
        let name = container.image.as_deref().unwrap_or_default();
        let parsed = images::parse(name).map_err(|error| Stage::ImageName.failure(chain(&error)))?;
        let policy = match container.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        };
        match parsed {
            Parsed::File(path) => {
                let began = Instant::now();
                let program = self.load(name, &path).await?;
                let new = self.body.loaded.lock().insert(program.digest().to_owned());
                self.tell_pulled(container, name, new.then(|| (began.elapsed(), None)));
                let file = path.file_name().map(|file| file.to_string_lossy().into_owned());
                let name = file.unwrap_or_else(|| container.name.clone());
                let config = ImageConfig { name, ..ImageConfig::default() };
                let id = program.digest().to_owned();
                Ok(Image::Wasm { program, config, id, pin: None })
            }
            parsed => match kind(&self.body, &self.object, &self.spec, container).await {
                Kind::Wasm => {
                    let here = match &parsed {
                        Parsed::Registry(reference) => self.body.images.has(reference).await.unwrap_or(false),
                        _ => false,
                    };
                    self.pull_wasm(container, name, policy, here).await
                }
                Kind::Docker => self.pull_docker(container, name, policy).await,
            },
        }
    }

    async fn pull_wasm(
        &self,
        container: &Container,
        name: &str,
        policy: PullPolicy,
        is_here: bool,
    ) -> Result<Image, StartFailure> {
        let credentials = credentials(&self.body, &self.object, &self.spec);
        if policy == PullPolicy::Always || (policy == PullPolicy::IfNotPresent && !is_here) {
            self.tell(container, false, "Pulling", &format!("Pulling image {name:?}"));
        }
        let began = Instant::now();
        let pulled = self.body.images.pull(name, policy, &credentials).await.map_err(|error| match error.reason() {
            "InvalidImageName" => Stage::ImageName.failure(chain(&error)),
            "ErrImageNeverPull" => Stage::NeverPull.failure(chain(&error)),
            _ if is_container_image(&error) => Stage::Pull.failure(self.no_docker(name)),
            _ => Stage::Pull.failure(format!("{}{}", chain(&error), self.docker_is_down())),
        })?;
        let program = self.load(name, &pulled.path).await?;
        let is_pulled = policy == PullPolicy::Always || !pulled.was_present;
        self.tell_pulled(container, name, is_pulled.then(|| (began.elapsed(), Some(pulled.bytes))));
        Ok(Image::Wasm { program, config: pulled.config, id: pulled.image_id, pin: pulled.pin })
    }

    /// What an error says beside itself where Docker, which may have the image, is not there.
    fn docker_is_down(&self) -> String {
        match self.body.docker.as_ref().map(|docker| docker.health().borrow().clone()) {
            Some(Health::Down { reason }) => format!("; and Docker is not there: {reason}"),
            _ => String::new(),
        }
    }

    /// An image for Docker where there is no Docker.
    fn no_docker(&self, name: &str) -> String {
        let why = match &self.body.docker {
            None => "this node runs Wasm only".to_owned(),
            Some(docker) => match &*docker.health().borrow() {
                Health::Down { reason } => reason.clone(),
                _ => "Docker has not answered yet".to_owned(),
            },
        };
        format!("image {name:?} is an OCI container image and needs Docker: {why}")
    }

    async fn pull_docker(&self, container: &Container, name: &str, policy: PullPolicy) -> Result<Image, StartFailure> {
        let Some(docker) = &self.body.docker else { return Err(Stage::Pull.failure(self.no_docker(name))) };
        let failed = |error: &dyn std::error::Error| Stage::Pull.failure(chain(error));
        let present = docker.has_image(name).await.map_err(|error| failed(&error))?;
        match (policy, present) {
            (PullPolicy::Never, None) => {
                let message = format!("Container image {name:?} is not present with pull policy of Never");
                Err(Stage::NeverPull.failure(message))
            }
            (PullPolicy::Never | PullPolicy::IfNotPresent, Some(info)) => {
                self.tell_pulled(container, name, None);
                Ok(Image::Docker(info))
            }
            (_, present) => {
                self.tell(container, false, "Pulling", &format!("Pulling image {name:?}"));
                let began = Instant::now();
                let loaded = present.as_ref().map(|info| info.id.as_str());
                match self.body.images.archive(name, loaded).await.map_err(|error| failed(&error))? {
                    None => {}
                    Some(archive) => {
                        let info = match (archive, present) {
                            (Archive::Loaded, Some(info)) => info,
                            (Archive::Loaded, None) => return Err(Stage::Pull.failure("the image has just gone")),
                            (Archive::File(path, _pin), _) => {
                                docker.load(&path, name).await.map_err(|error| failed(&error))?
                            }
                        };
                        self.tell_pulled(container, name, Some((began.elapsed(), Some(info.size_bytes))));
                        return Ok(Image::Docker(info));
                    }
                }
                let credentials = credentials(&self.body, &self.object, &self.spec);
                let mut last = None;
                // as the kubelet: whoever fits is tried in turn, and nobody if nobody fits
                for auth in logins(name, &credentials) {
                    match docker.pull(name, auth).await {
                        Ok(info) => {
                            self.tell_pulled(container, name, Some((began.elapsed(), Some(info.size_bytes))));
                            return Ok(Image::Docker(info));
                        }
                        Err(error) => last = Some(error),
                    }
                }
                Err(last.map_or_else(|| Stage::Pull.failure("no credentials fit"), |error| failed(&error)))
            }
        }
    }

    async fn load(&self, name: &str, path: &Path) -> Result<Program, StartFailure> {
        self.body.wasm.load(path).await.map_err(|error| match error {
            LoadError::Engine { .. } => Stage::Create.failure(chain(&error)),
            error => Stage::Pull.failure(format!("failed to pull image {name:?}: {}", chain(&error))),
        })
    }

    /// `pulled`: how long it took and how large it is; `None` when the image was here.
    fn tell_pulled(&self, container: &Container, name: &str, pulled: Option<(Duration, Option<u64>)>) {
        let message = match pulled {
            None => format!("Container image {name:?} already present on machine"),
            Some((took, bytes)) => {
                let took = took.as_millis();
                let size = bytes.map(|bytes| format!(". Image size: {bytes} bytes.")).unwrap_or_default();
                format!("Successfully pulled image {name:?} in {took}ms ({took}ms including waiting){size}")
            }
        };
        self.tell(container, false, "Pulled", &message);
    }
}
