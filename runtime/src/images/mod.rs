//! Wasm images: from a registry, an address or a file into the node's store, and from there to a path to load.
//!
//! [`parse`] reads a name, [`Images`] is the store that all pods of a node share: [`Images::pull`] brings an image
//! there by pull policy, from the node's master ([`Origin`]) or else its registry, and answers the path of its program,
//! [`Images::kind`] tells whether an image is Wasm at all. An
//! image is one program; what else its layers hold is not kept. Container images are here only as archives that were
//! imported, on their way into Docker's own store. Deliberately absent: proxies, signatures, zstd layers.

mod archive;
mod artifact;
mod container;
mod credentials;
mod error;
mod import;
mod manifest;
mod origin;
mod pull;
mod push;
mod reference;
mod registry;
mod store;
mod transport;

use std::collections::HashMap;
use std::io::{Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;

pub use container::Archive;
pub use credentials::{Credential, CredentialsError, credentials_of, docker_config, matching};
pub use error::{ImageError, PullError};
pub use origin::{Offer, Origin, OriginBytes, OriginError};
pub use push::{Pushed, push_file};
pub use reference::{HttpsImage, Parsed, Reference, parse};
pub use store::{Content, ImageConfig, Pin, Removed, Source, Stored};
pub use transport::RegistryConfig;

use archive::Bounds;
use store::{Store, lock};
use transport::Transport;

/// How long a registry's answer to what an image is holds.
const KIND_TIME: Duration = Duration::from_secs(60);
const KINDS_MAX: usize = 1024;
/// Bytes read from the store at once.
const READ_BYTES: usize = 256 << 10;

/// Bytes of a stored program, in order.
pub type ImageBytes = BoxStream<'static, std::io::Result<Bytes>>;

/// The bounds of the store and of what is taken from registries.
#[derive(Debug, Clone, Copy)]
pub struct ImageLimits {
    /// All programs in the store, in bytes.
    pub bytes_max: u64,
    /// One program, and one layer as it is sent, in bytes.
    pub wasm_bytes_max: u64,
    /// A container image's archive, in bytes.
    pub archive_bytes_max: u64,
    /// One layer when it is unpacked, in bytes.
    pub unpacked_bytes_max: u64,
    /// A manifest or a config, in bytes.
    pub manifest_bytes_max: u64,
    /// Images fetched at the same time.
    pub pulls_max: usize,
}

impl Default for ImageLimits {
    fn default() -> Self {
        ImageLimits {
            bytes_max: 4 << 30,
            wasm_bytes_max: 256 << 20,
            archive_bytes_max: 2 << 30,
            unpacked_bytes_max: 1 << 30,
            manifest_bytes_max: 4 << 20,
            pulls_max: 4,
        }
    }
}

/// When the master or the registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Each time, for what the name stands for now; what is here already is not fetched again.
    Always,
    /// If the image is not here.
    IfNotPresent,
    /// Not at all.
    Never,
}

/// What runs an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This process.
    Wasm,
    /// A container engine.
    Container,
}

/// An image that is here.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The program's file. A stored one has no extension; it stays while `pin` lives.
    pub path: PathBuf,
    /// `sha256:...` of the manifest or index, or of the file behind an address. Empty for `file://`, where the
    /// program's own digest, known when it is loaded, stands for it.
    pub digest: String,
    /// What `imageID` says of a registry's image: `docker.io/library/app@sha256:...`; else the digest.
    pub image_id: String,
    /// Nothing had to be fetched.
    pub was_present: bool,
    /// The program's size; 0 for `file://`.
    pub bytes: u64,
    /// How the image wants to be run.
    pub config: ImageConfig,
    /// Keep it while the image is in use: it holds the file in the store. None for `file://`.
    pub pin: Option<Pin>,
}

/// A node's Wasm images; clones share it. Several processes may open the same directory.
#[derive(Debug, Clone)]
pub struct Images(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    limits: ImageLimits,
    transport: Arc<Transport>,
    origin: Option<Arc<dyn Origin>>,
    pulls: Semaphore,
    /// One pull of a name at a time.
    slots: Mutex<HashMap<String, Arc<pull::Slot>>>,
    kinds: Mutex<HashMap<String, (Instant, Kind)>>,
}

impl Images {
    /// Opens the store in `dir`, which is made if it is not there. Blocks for a moment.
    pub fn open(dir: &Path, limits: ImageLimits) -> Result<Images, ImageError> {
        Images::open_with(dir, limits, RegistryConfig::default(), None)
    }

    /// As [`Images::open`], with other authorities than the machine's, and with somebody to ask before registries.
    pub fn open_with(
        dir: &Path,
        limits: ImageLimits,
        registries: RegistryConfig,
        origin: Option<Arc<dyn Origin>>,
    ) -> Result<Images, ImageError> {
        Ok(Images(Arc::new(Inner {
            store: Store::open(dir, limits)?,
            limits,
            transport: Arc::new(Transport::new(registries)),
            origin,
            pulls: Semaphore::new(limits.pulls_max.max(1)),
            slots: Mutex::default(),
            kinds: Mutex::default(),
        })))
    }

    /// Brings an image here, as its policy has it, and answers where it is. Concurrent pulls of one name are one.
    pub async fn pull(
        &self,
        image: &str,
        policy: PullPolicy,
        credentials: &[Credential],
    ) -> Result<Pulled, ImageError> {
        match parse(image)? {
            Parsed::File(path) => Ok(file_image(path)),
            Parsed::Https(https) => pull::https(&self.0, image, &https, policy).await,
            Parsed::Registry(reference) => pull::registry(&self.0, image, &reference, policy, credentials).await,
        }
    }

    /// Whether an image is a Wasm program: the store's word, else the master's, else the registry's. Each of these has ten
    /// seconds to give it.
    pub async fn kind(&self, image: &str, credentials: &[Credential]) -> Result<Kind, ImageError> {
        let Parsed::Registry(reference) = parse(image)? else { return Ok(Kind::Wasm) };
        let name = reference.to_string();
        if let Some(stored) = self.stored(&name).await? {
            return Ok(Kind::of(stored.content));
        }
        if let Ok(Some(offer)) = origin::find(&self.0, image).await {
            return Ok(Kind::of(offer.content));
        }
        if let Some((asked, kind)) = lock(&self.0.kinds).get(&name)
            && asked.elapsed() < KIND_TIME
        {
            return Ok(*kind);
        }
        let kind = pull::kind(&self.0, &reference, credentials).await?;
        let mut kinds = lock(&self.0.kinds);
        if kinds.len() >= KINDS_MAX {
            kinds.retain(|_, (asked, _)| asked.elapsed() < KIND_TIME);
        }
        if kinds.len() < KINDS_MAX {
            kinds.insert(name, (Instant::now(), kind));
        }
        Ok(kind)
    }

    /// Whether the store has an image of this name.
    pub async fn has(&self, reference: &Reference) -> Result<bool, ImageError> {
        Ok(self.stored(&reference.to_string()).await?.is_some())
    }

    async fn stored(&self, name: &str) -> Result<Option<Stored>, ImageError> {
        let (inner, name) = (self.0.clone(), name.to_owned());
        blocking(move || {
            let found = inner.store.find(&name).map_err(|error| ImageError::store(&name, error))?;
            Ok(found.filter(|stored| inner.store.blob_path(&stored.blob).is_file()))
        })
        .await
    }

    /// A container image that the master has imported, brought here; none if the master does not decide about the name.
    /// `loaded` is the id of what the node's engine has under the name: where that is the image, nothing is fetched.
    pub async fn archive(&self, image: &str, loaded: Option<&str>) -> Result<Option<Archive>, ImageError> {
        let Ok(Parsed::Registry(reference)) = parse(image) else { return Ok(None) };
        container::archive(&self.0, image, &reference, loaded).await
    }

    /// Brings a file into the store under a name: a `.wasm` file, an OCI image layout in a tar, or a file of
    /// `docker save` with one image, which may be a container image.
    pub async fn import(&self, path: &Path, reference: &Reference) -> Result<Stored, ImageError> {
        let (inner, path, reference) = (self.0.clone(), path.to_owned(), reference.clone());
        blocking(move || {
            let limits = inner.limits;
            let failed = |error| ImageError::Import { path: path.clone(), source: Arc::new(error) };
            let imported = import::import(&inner.store, &path, &reference, limits).map_err(failed)?;
            if let Some(wanted) = reference.digest().filter(|wanted| *wanted != imported.digest) {
                return Err(failed(registry::check("image", wanted, &imported.digest).err().unwrap_or_else(|| {
                    // cannot be: they differ
                    PullError::malformed("image", "another digest")
                })));
            }
            let stored = Stored {
                reference: reference.to_string(),
                digest: imported.digest,
                blob: imported.blob,
                bytes: imported.bytes,
                created: jiff::Timestamp::now().to_string(),
                config: imported.config,
                source: Source::Imported,
                content: imported.content,
            };
            inner.store.record(&stored).map_err(|error| ImageError::store(&path, error))?;
            drop(imported.pin);
            Ok(stored)
        })
        .await
    }

    /// What the store has under a name, which is as in a pod.
    pub async fn find(&self, image: &str) -> Result<Option<Stored>, ImageError> {
        match stored_name(image) {
            Ok(name) => self.stored(&name).await,
            Err(_) => Ok(None),
        }
    }

    /// The bytes of the program that a name stands for, from the byte `from` on; none if it stands for another one. They stay
    /// in the store until they are read.
    pub async fn read(&self, image: &str, blob: &str, from: u64) -> Result<Option<ImageBytes>, ImageError> {
        let Some(stored) = self.find(image).await?.filter(|stored| stored.blob == blob) else { return Ok(None) };
        let inner = self.0.clone();
        let opened = blocking(move || {
            let failed = |error| ImageError::store(inner.store.blob_path(&stored.blob), error);
            let Some(pin) = inner.store.pin(&stored.blob).map_err(failed)? else { return Ok(None) };
            let mut file = std::fs::File::open(inner.store.blob_path(&stored.blob)).map_err(failed)?;
            file.seek(SeekFrom::Start(from)).map_err(failed)?;
            Ok(Some((file, pin)))
        })
        .await?;
        let Some((file, pin)) = opened else { return Ok(None) };
        let pieces = ReaderStream::with_capacity(tokio::fs::File::from_std(file), READ_BYTES);
        Ok(Some(
            pieces
                .inspect(move |_| {
                    let _held = &pin;
                })
                .boxed(),
        ))
    }

    /// All images of the store, by name.
    pub async fn list(&self) -> Result<Vec<Stored>, ImageError> {
        let inner = self.0.clone();
        blocking(move || inner.store.list().map_err(|error| ImageError::store("refs", error))).await
    }

    /// Takes a name from the store, and its program unless something else needs it. `image` is as in a pod.
    pub async fn remove(&self, image: &str) -> Result<Removed, ImageError> {
        let name = stored_name(image)?;
        let (inner, image) = (self.0.clone(), image.to_owned());
        blocking(move || {
            let removed = inner.store.remove(&name).map_err(|error| ImageError::store("refs", error))?;
            removed.ok_or(ImageError::Absent { image })
        })
        .await
    }

    /// Puts an image of the store, named as in a pod, into a registry: see [`push_file`].
    pub async fn push(
        &self,
        image: &str,
        target: &Reference,
        credentials: &[Credential],
    ) -> Result<Pushed, ImageError> {
        let (inner, name, image) = (self.0.clone(), stored_name(image)?, image.to_owned());
        let (path, title, _pin) = blocking(move || {
            let failed = |error| ImageError::store(&name, error);
            let stored = inner.store.find(&name).map_err(failed)?;
            let stored = stored.ok_or_else(|| ImageError::Absent { image: image.clone() })?;
            let pin = inner.store.pin(&stored.blob).map_err(failed)?.ok_or(ImageError::Absent { image })?;
            Ok((inner.store.blob_path(&stored.blob), stored.config.name, pin))
        })
        .await?;
        push::push(&self.0.transport, &self.0.limits, path, title, target, credentials).await
    }
}

impl Kind {
    fn of(content: Content) -> Kind {
        match content {
            Content::Program => Kind::Wasm,
            Content::Archive => Kind::Container,
        }
    }
}

impl ImageLimits {
    fn bounds(&self) -> Bounds {
        Bounds { unpacked_bytes_max: self.unpacked_bytes_max, wasm_bytes_max: self.wasm_bytes_max }
    }
}

fn file_image(path: PathBuf) -> Pulled {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Pulled {
        path,
        digest: String::new(),
        image_id: String::new(),
        was_present: true,
        bytes: 0,
        config: ImageConfig { name, ..ImageConfig::default() },
        pin: None,
    }
}

/// The name under which the store knows an image.
fn stored_name(image: &str) -> Result<String, ImageError> {
    match parse(image)? {
        Parsed::Registry(reference) => Ok(reference.to_string()),
        Parsed::Https(https) => Ok(https.to_string()),
        Parsed::File(_) => Err(ImageError::Absent { image: image.to_owned() }),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // Only a panic or the end of the executor.
        Err(error) => Err(ImageError::store("", std::io::Error::other(error))),
    }
}
