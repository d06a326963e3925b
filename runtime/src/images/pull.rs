//! From a name to a program in the store: policy, one pull at a time, credentials in turn, both layouts.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use super::archive::{self, Lookup};
use super::credentials::{Credential, matching};
use super::error::{ImageError, PullError};
use super::import::{no_program, program_path};
use super::manifest::{self, ContainerConfig, Descriptor, Found, Layout, Manifest};
use super::origin::{self, Offer, OriginError, PATIENCE, PATIENCE_SHORT};
use super::reference::{HttpsImage, Reference};
use super::registry::{Fetched, Registry, check, download};
use super::store::{Content, ImageConfig, Pin, Source, Stored};
use super::{Inner, Kind, PullPolicy, Pulled, blocking, lock};

/// The longest that a pull may take.
const PULL_MAX: Duration = Duration::from_secs(1800);
/// The longest that a registry may think about what an image is.
const KIND_MAX: Duration = Duration::from_secs(10);
const SLOTS_MAX: usize = 1024;

/// A name's turn, and how its last pull failed.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) turn: tokio::sync::Mutex<()>,
    failed: std::sync::Mutex<Option<Failed>>,
}

#[derive(Debug)]
struct Failed {
    at: Instant,
    credentials: Vec<Credential>,
    error: ImageError,
}

impl Slot {
    /// Whoever waited while another pull of the same kind failed has its answer.
    fn failed_since(&self, began: Instant, credentials: &[Credential]) -> Option<ImageError> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let same = failed.as_ref().filter(|failed| failed.at >= began && failed.credentials == credentials);
        same.map(|failed| failed.error.clone())
    }

    fn fail(&self, credentials: &[Credential], error: &ImageError) {
        let failed = Failed { at: Instant::now(), credentials: credentials.to_vec(), error: error.clone() };
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(failed);
    }
}

pub(super) fn slot(inner: &Inner, name: &str) -> Arc<Slot> {
    let mut slots = lock(&inner.slots);
    if slots.len() >= SLOTS_MAX {
        slots.retain(|_, slot| Arc::strong_count(slot) > 1);
    }
    slots.entry(name.to_owned()).or_default().clone()
}

/// One pull: of what, by whom.
struct Task<'a> {
    inner: &'a Arc<Inner>,
    /// As written in the pod.
    image: &'a str,
    /// As the store knows it.
    name: String,
    /// The repository; none for a file behind an address.
    repository: Option<String>,
    policy: PullPolicy,
    credentials: Vec<Credential>,
}

/// What a fetch comes back with.
enum Outcome {
    /// The name stands for what is here.
    Current(Stored, Pin),
    Fresh(Fresh),
}

/// A program that was just stored.
struct Fresh {
    digest: String,
    blob: String,
    bytes: u64,
    config: ImageConfig,
    pin: Pin,
    source: Source,
}

/// A file behind an address: its checksum is its name, so that no policy asks for it twice.
pub(super) async fn https(
    inner: &Arc<Inner>,
    image: &str,
    https: &HttpsImage,
    policy: PullPolicy,
) -> Result<Pulled, ImageError> {
    let policy = if policy == PullPolicy::Never { policy } else { PullPolicy::IfNotPresent };
    let task = Task { inner, image, name: https.to_string(), repository: None, policy, credentials: Vec::new() };
    let fetching = async {
        let (blob, digest) = (https.sha256.clone(), format!("sha256:{}", https.sha256));
        if let Ok(Some(offer)) = origin::find(inner, image).await
            && offer.blob == blob
            && let Ok(taken) = take(inner, image, &task.name, offer, PATIENCE_SHORT).await
        {
            return Ok(taken);
        }
        let temporary = temporary(inner).await?;
        let found = download(&inner.transport, &https.url, temporary.as_file(), inner.limits.wasm_bytes_max).await?;
        check(https.url.as_str(), &digest, &format!("sha256:{found}"))?;
        let file = https.url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or("app.wasm");
        let config = ImageConfig { name: file.to_owned(), ..ImageConfig::default() };
        let (pin, bytes) = commit(inner, temporary, blob.clone()).await?;
        Ok(Outcome::Fresh(Fresh { digest, blob, bytes, config, pin, source: Source::Public }))
    };
    task.run(fetching).await
}

/// An image of a registry.
pub(super) async fn registry(
    inner: &Arc<Inner>,
    image: &str,
    reference: &Reference,
    policy: PullPolicy,
    credentials: &[Credential],
) -> Result<Pulled, ImageError> {
    let credentials: Vec<Credential> = matching(credentials, reference).into_iter().cloned().collect();
    let (name, repository) = (reference.to_string(), Some(reference.repository()));
    let task = Task { inner, image, name, repository, policy, credentials: credentials.clone() };
    let fetching = async {
        let (offer, is_away) = match origin::find(inner, image).await {
            Ok(Some(offer)) if offer.imported => return take(inner, image, &task.name, offer, PATIENCE).await,
            Ok(offer) => (offer, false),
            Err(error) => {
                tracing::debug!(image, %error, "the master is not asked for an image");
                // whose name this is is away: what it said last holds, as everything else of it does
                if matches!(error, OriginError::Away(_))
                    && let Some((stored, pin)) = local(inner, &task.name).await.map_err(store_error)?
                    && stored.source == Source::Master
                {
                    return Ok(Outcome::Current(stored, pin));
                }
                (None, true)
            }
        };
        let wanted = Wanted { image, reference, offer: offer.as_ref(), is_away };
        let mut users = users(reference, &credentials).into_iter();
        let fetched = loop {
            let user = users.next().flatten();
            let fetched = fetch(inner, &wanted, user.as_ref()).await;
            if !is_turned_away(&fetched) || users.len() == 0 {
                break fetched;
            }
        };
        match (fetched, offer) {
            // nobody there to ask, and what was answered once is at hand
            (Err(error), Some(offer)) if policy != PullPolicy::Always && is_unreachable(&error) => {
                take(inner, image, &task.name, offer, PATIENCE).await
            }
            (fetched, _) => fetched,
        }
    };
    task.run(fetching).await
}

/// An image of a registry, to be fetched.
struct Wanted<'a> {
    /// As written in the pod.
    image: &'a str,
    reference: &'a Reference,
    /// What the registry said of it to the master.
    offer: Option<&'a Offer>,
    /// The master cannot be asked for bytes.
    is_away: bool,
}

/// Brings what the master offers here.
async fn take(
    inner: &Arc<Inner>,
    image: &str,
    name: &str,
    offer: Offer,
    patience: Duration,
) -> Result<Outcome, PullError> {
    let source = if offer.imported { Source::Master } else { Source::Public };
    if let Some((stored, pin)) = local(inner, name).await.map_err(store_error)?
        && (&stored.digest, &stored.blob) == (&offer.digest, &offer.blob)
        && matches!(stored.source, Source::Imported | Source::Master)
    {
        return Ok(Outcome::Current(stored, pin));
    }
    let bytes_max = inner.limits.wasm_bytes_max;
    if offer.content == Content::Archive {
        return Err(PullError::NotWasm { what: format!("the master's image {}", offer.digest) });
    }
    if offer.bytes > bytes_max {
        return Err(PullError::TooBig { what: "the master's image".into(), bytes_max });
    }
    let Offer { digest, blob, config, .. } = offer;
    let (pin, bytes) = origin::fetch(inner, image, &blob, bytes_max, patience).await?;
    Ok(Outcome::Fresh(Fresh { digest, blob, bytes, config, pin, source }))
}

/// Whether nobody has answered at all.
fn is_unreachable(error: &PullError) -> bool {
    match error {
        PullError::Transport { .. } => true,
        PullError::Resolve { source, .. } => is_unreachable(source),
        _ => false,
    }
}

impl Task<'_> {
    async fn run(&self, fetching: impl Future<Output = Result<Outcome, PullError>>) -> Result<Pulled, ImageError> {
        if self.policy != PullPolicy::Always
            && let Some((stored, pin)) = local(self.inner, &self.name).await?
        {
            return Ok(self.pulled(stored, pin, true));
        }
        if self.policy == PullPolicy::Never {
            return Err(ImageError::NeverPull { image: self.image.to_owned() });
        }
        let (began, slot) = (Instant::now(), slot(self.inner, &self.name));
        let _turn = slot.turn.lock().await;
        if self.policy != PullPolicy::Always
            && let Some((stored, pin)) = local(self.inner, &self.name).await?
        {
            return Ok(self.pulled(stored, pin, true));
        }
        if let Some(error) = slot.failed_since(began, &self.credentials) {
            return Err(error);
        }
        match self.bounded(fetching).await {
            Ok(Outcome::Current(stored, pin)) => Ok(self.pulled(stored, pin, true)),
            Ok(Outcome::Fresh(fresh)) => self.keep(fresh).await,
            Err(error) => {
                let error = ImageError::Pull { image: self.name.clone(), source: Arc::new(error) };
                slot.fail(&self.credentials, &error);
                Err(error)
            }
        }
    }

    async fn bounded(&self, fetching: impl Future<Output = Result<Outcome, PullError>>) -> Result<Outcome, PullError> {
        let bounded = async {
            // Never closed; and if it were, the pull would only be one more.
            let _permit = self.inner.pulls.acquire().await.ok();
            fetching.await
        };
        let slow = PullError::Slow { what: "the pull", seconds: PULL_MAX.as_secs() };
        tokio::time::timeout(PULL_MAX, bounded).await.unwrap_or(Err(slow))
    }

    /// Writes down what the name stands for now.
    async fn keep(&self, fresh: Fresh) -> Result<Pulled, ImageError> {
        let stored = Stored {
            reference: self.name.clone(),
            digest: fresh.digest,
            blob: fresh.blob,
            bytes: fresh.bytes,
            created: jiff::Timestamp::now().to_string(),
            config: fresh.config,
            source: fresh.source,
            content: Content::Program,
        };
        let (inner, record) = (self.inner.clone(), stored.clone());
        blocking(move || {
            inner.store.record(&record).map_err(|error| ImageError::store(inner.store.blob_path(&record.blob), error))
        })
        .await?;
        Ok(self.pulled(stored, fresh.pin, false))
    }

    fn pulled(&self, stored: Stored, pin: Pin, was_present: bool) -> Pulled {
        let image_id = match &self.repository {
            Some(repository) => format!("{repository}@{}", stored.digest),
            None => stored.digest.clone(),
        };
        Pulled {
            path: self.inner.store.blob_path(&stored.blob),
            digest: stored.digest,
            image_id,
            was_present,
            bytes: stored.bytes,
            config: stored.config,
            pin: Some(pin),
        }
    }
}

/// What a name stands for, if its program is here and intact.
async fn local(inner: &Arc<Inner>, name: &str) -> Result<Option<(Stored, Pin)>, ImageError> {
    let (inner, name) = (inner.clone(), name.to_owned());
    blocking(move || {
        let failed = |error| ImageError::store(&name, error);
        let found = inner.store.find(&name).map_err(failed)?;
        let Some(stored) = found.filter(|stored| stored.content == Content::Program) else { return Ok(None) };
        let pin = inner.store.pin(&stored.blob).map_err(failed)?;
        Ok(pin.map(|pin| (stored, pin)))
    })
    .await
}

/// Who a registry is asked as, in turn; as nobody if nobody fits.
pub(super) fn users(reference: &Reference, credentials: &[Credential]) -> Vec<Option<Credential>> {
    let mut users: Vec<_> = matching(credentials, reference).into_iter().cloned().map(Some).collect();
    if users.is_empty() {
        users.push(None);
    }
    users
}

/// Whether the next of the users is worth a try.
pub(super) fn is_turned_away<T>(result: &Result<T, PullError>) -> bool {
    result.as_ref().is_err_and(is_denied)
}

fn is_denied(error: &PullError) -> bool {
    match error {
        PullError::Denied { .. } => true,
        PullError::Resolve { source, .. } => is_denied(source),
        _ => false,
    }
}

async fn fetch(inner: &Arc<Inner>, wanted: &Wanted<'_>, credential: Option<&Credential>) -> Result<Outcome, PullError> {
    let reference = wanted.reference;
    let source = if credential.is_some() { Source::Private } else { Source::Public };
    let resolving = |source| PullError::Resolve { reference: reference.to_string(), source: Box::new(source) };
    let manifest_bytes_max = inner.limits.manifest_bytes_max;
    let mut registry =
        Registry::new(&inner.transport, reference, credential, "pull", manifest_bytes_max).map_err(resolving)?;
    let known = local(inner, &reference.to_string()).await.map_err(store_error)?;
    if let Some((stored, pin)) = known
        && registry.resolve().await.map_err(resolving)?.is_some_and(|digest| digest == stored.digest)
    {
        return Ok(Outcome::Current(stored, pin));
    }
    let top = registry.manifest(reference.wanted()).await.map_err(resolving)?;
    // the registry has said what the name stands for; where the master has just that, its bytes are nearer
    if let Some(offer) = wanted.offer.filter(|offer| offer.digest == top.digest)
        && let Ok(Outcome::Fresh(fresh)) =
            take(inner, wanted.image, &reference.to_string(), offer.clone(), PATIENCE_SHORT).await
    {
        return Ok(Outcome::Fresh(Fresh { source, ..fresh }));
    }
    let manifest = match one_image(&mut registry, &top).await? {
        Ok(manifest) => manifest,
        Err(platforms) => {
            return Err(PullError::NotWasm { what: format!("manifest {} ({platforms})", top.digest) });
        }
    };
    match manifest.layout() {
        Layout::Artifact(layer) => artifact(inner, &mut registry, wanted, top.digest, &layer, source).await,
        Layout::Image { marked } => image(inner, &mut registry, top.digest, &manifest, marked, source).await,
        Layout::Other(kind) => Err(PullError::NotWasm { what: format!("manifest {} ({kind})", top.digest) }),
    }
}

/// The manifest of the one image to run; of an index without a Wasm image, what else it holds.
async fn one_image(registry: &mut Registry<'_>, top: &Fetched) -> Result<Result<Manifest, String>, PullError> {
    let entries = match manifest::read(&top.text)? {
        Found::Manifest(manifest) => return Ok(Ok(manifest)),
        Found::Index(entries) => entries,
    };
    let Some(chosen) = manifest::choose(&entries) else { return Ok(Err(manifest::platforms(&entries))) };
    chosen.hex()?;
    let inner = registry.manifest(&chosen.digest).await?;
    match manifest::read(&inner.text)? {
        Found::Manifest(manifest) => Ok(Ok(manifest)),
        Found::Index(_) => Err(PullError::malformed("manifest", "an index inside an index")),
    }
}

async fn artifact(
    inner: &Arc<Inner>,
    registry: &mut Registry<'_>,
    wanted: &Wanted<'_>,
    digest: String,
    layer: &Descriptor,
    source: Source,
) -> Result<Outcome, PullError> {
    let reference = wanted.reference;
    let blob = layer.hex()?.to_owned();
    let title = layer.annotations.get("org.opencontainers.image.title").cloned();
    let name = title.unwrap_or_else(|| format!("{}.wasm", reference.path().rsplit('/').next().unwrap_or_default()));
    let config = ImageConfig { name, ..ImageConfig::default() };
    // Another name may have brought it.
    if let Some(pin) = pin(inner, &blob).await? {
        return Ok(Outcome::Fresh(Fresh { digest, blob, bytes: layer.size, config, pin, source }));
    }
    // the registry lets this node have it; the master, which may have it too, is nearer
    if !wanted.is_away
        && let Ok((pin, bytes)) =
            origin::fetch(inner, wanted.image, &blob, inner.limits.wasm_bytes_max, PATIENCE_SHORT).await
    {
        return Ok(Outcome::Fresh(Fresh { digest, blob, bytes, config, pin, source }));
    }
    let temporary = temporary(inner).await?;
    registry.blob(layer, temporary.as_file(), inner.limits.wasm_bytes_max).await?;
    let (pin, bytes) = commit(inner, temporary, blob.clone()).await?;
    Ok(Outcome::Fresh(Fresh { digest, blob, bytes, config, pin, source }))
}

/// A container image: layers are looked through from the uppermost down, and are not kept.
async fn image(
    inner: &Arc<Inner>,
    registry: &mut Registry<'_>,
    digest: String,
    manifest: &Manifest,
    marked: bool,
    source: Source,
) -> Result<Outcome, PullError> {
    let config = ContainerConfig::read(&registry.config(&manifest.config).await?)?;
    if !config.is_wasm(marked) {
        return Err(PullError::NotWasm { what: format!("manifest {digest} ({})", config.platform()) });
    }
    let (path, limits) = (program_path(&config)?, inner.limits);
    let mut out = temporary(inner).await?;
    for (number, descriptor) in manifest.layers.iter().enumerate().rev() {
        let layer = temporary(inner).await?;
        registry.blob(descriptor, layer.as_file(), limits.wasm_bytes_max).await?;
        let (what, diff_id) = (format!("layer {}", descriptor.digest), config.diff_id(number).map(str::to_owned));
        let wanted = path.clone();
        let looking = move || {
            let bounds = limits.bounds();
            let found = archive::find(&what, layer.as_file(), diff_id.as_deref(), &wanted, out.as_file_mut(), bounds)?;
            Ok((found, out))
        };
        let (found, written) = off_thread(looking).await?;
        out = written;
        match found {
            Lookup::Here(blob, _) => {
                let (pin, bytes) = commit(inner, out, blob.clone()).await?;
                let config = config.image_config(&path);
                return Ok(Outcome::Fresh(Fresh { digest, blob, bytes, config, pin, source }));
            }
            Lookup::Hidden => break,
            Lookup::Absent => {}
        }
    }
    Err(no_program(&path))
}

/// What an image is, by its manifest and, if that does not tell, its config.
pub(super) async fn kind(
    inner: &Arc<Inner>,
    reference: &Reference,
    credentials: &[Credential],
) -> Result<Kind, ImageError> {
    let asking = async {
        let mut users = users(reference, credentials).into_iter();
        loop {
            let kind = kind_as(inner, reference, users.next().flatten()).await;
            if !is_turned_away(&kind) || users.len() == 0 {
                return kind;
            }
        }
    };
    let slow = PullError::Slow { what: "asking the registry what the image is", seconds: KIND_MAX.as_secs() };
    let done = tokio::time::timeout(KIND_MAX, asking).await.unwrap_or(Err(slow));
    done.map_err(|error| ImageError::Pull { image: reference.to_string(), source: Arc::new(error) })
}

async fn kind_as(inner: &Arc<Inner>, reference: &Reference, user: Option<Credential>) -> Result<Kind, PullError> {
    let resolving = |source| PullError::Resolve { reference: reference.to_string(), source: Box::new(source) };
    let manifest_bytes_max = inner.limits.manifest_bytes_max;
    let mut registry = Registry::new(&inner.transport, reference, user.as_ref(), "pull", manifest_bytes_max)?;
    let top = registry.manifest(reference.wanted()).await.map_err(resolving)?;
    let Ok(manifest) = one_image(&mut registry, &top).await? else { return Ok(Kind::Container) };
    let is_wasm = match manifest.layout() {
        Layout::Artifact(_) | Layout::Image { marked: true } => true,
        Layout::Image { marked: false } => {
            ContainerConfig::read(&registry.config(&manifest.config).await?)?.is_wasm(false)
        }
        Layout::Other(_) => false,
    };
    Ok(if is_wasm { Kind::Wasm } else { Kind::Container })
}

async fn temporary(inner: &Arc<Inner>) -> Result<NamedTempFile, PullError> {
    let inner = inner.clone();
    off_thread(move || inner.store.temporary().map_err(PullError::disk("cannot write into the image store"))).await
}

async fn commit(inner: &Arc<Inner>, file: NamedTempFile, blob: String) -> Result<(Pin, u64), PullError> {
    let inner = inner.clone();
    off_thread(move || {
        let bytes = file.as_file().metadata().map_err(PullError::disk("cannot write into the image store"))?.len();
        Ok((inner.store.commit(file, &blob)?, bytes))
    })
    .await
}

pub(super) async fn pin(inner: &Arc<Inner>, blob: &str) -> Result<Option<Pin>, PullError> {
    let (inner, blob) = (inner.clone(), blob.to_owned());
    off_thread(move || inner.store.pin(&blob).map_err(PullError::disk("cannot read the image store"))).await
}

pub(super) fn store_error(error: ImageError) -> PullError {
    PullError::Disk { what: "cannot read the image store".into(), source: std::io::Error::other(error) }
}

pub(super) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(store_error(ImageError::store("", std::io::Error::other(error)))),
    }
}
