//! A program into a registry, in the CNCF Wasm artifact layout.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::artifact::{self, Artifact};
use super::credentials::Credential;
use super::error::{ImageError, PullError};
use super::pull::{is_turned_away, users};
use super::reference::Reference;
use super::registry::Registry;
use super::store::digest_of;
use super::transport::{Payload, RegistryConfig, Transport};
use super::{ImageLimits, blocking};

/// The longest that a push may take.
const PUSH_MAX: Duration = Duration::from_secs(1800);

/// What a push made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The complete name that now stands for it.
    pub reference: String,
    /// `sha256:...` of the manifest.
    pub digest: String,
    /// Of the manifest, in bytes.
    pub manifest_bytes: u64,
    /// `sha256:...` of the program.
    pub layer: String,
}

/// Puts a `.wasm` file into a registry, in the CNCF Wasm artifact layout; it needs no store.
pub async fn push_file(path: &Path, target: &Reference, credentials: &[Credential]) -> Result<Pushed, ImageError> {
    let title = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let transport = Arc::new(Transport::new(RegistryConfig::default()));
    push(&transport, &ImageLimits::default(), path.to_owned(), title, target, credentials).await
}

pub(super) async fn push(
    transport: &Arc<Transport>,
    limits: &ImageLimits,
    path: PathBuf,
    title: String,
    target: &Reference,
    credentials: &[Credential],
) -> Result<Pushed, ImageError> {
    let (bytes_max, file) = (limits.wasm_bytes_max, path.clone());
    let made = blocking(move || {
        artifact::describe(&file, &title, bytes_max)
            .map_err(|error| ImageError::Import { path: file, source: Arc::new(error) })
    })
    .await?;
    let sending = async {
        let mut users = users(target, credentials).into_iter();
        loop {
            let user = users.next().flatten();
            let registry = Registry::new(transport, target, user.as_ref(), "pull,push", limits.manifest_bytes_max);
            let sent = match registry {
                Ok(registry) => send(registry, &path, &made).await,
                Err(error) => Err(error),
            };
            if !is_turned_away(&sent) || users.len() == 0 {
                return sent;
            }
        }
    };
    let slow = PullError::Slow { what: "the push", seconds: PUSH_MAX.as_secs() };
    let sent = tokio::time::timeout(PUSH_MAX, sending).await.unwrap_or(Err(slow));
    sent.map_err(|error| ImageError::Push { image: target.to_string(), source: Arc::new(error) })?;
    Ok(Pushed {
        reference: target.to_string(),
        digest: made.digest,
        manifest_bytes: made.manifest.len() as u64,
        layer: format!("sha256:{}", made.blob),
    })
}

async fn send(mut registry: Registry<'_>, path: &Path, made: &Artifact) -> Result<(), PullError> {
    let payload = Payload::File { path: path.to_owned(), bytes: made.bytes };
    registry.push_blob(&format!("sha256:{}", made.blob), payload).await?;
    registry.push_blob(&digest_of(&made.config), Payload::Bytes(made.config.clone())).await?;
    registry.push_manifest(made.manifest.clone()).await
}
