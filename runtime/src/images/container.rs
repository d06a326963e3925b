//! Container images as archives: written at an import, brought to nodes, and loaded there into their engine.
//!
//! An archive has the form of `docker save`: `manifest.json`, the config, the layers. The same image under the same name is
//! always the same archive. Deliberately absent: looking into layers; the engine checks them against the config.

use std::io::{Read, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header};
use tempfile::NamedTempFile;

use super::error::{ImageError, PullError};
use super::origin::{self, Offer, OriginError, PATIENCE};
use super::reference::Reference;
use super::registry::check;
use super::store::{Content, Pin, Source, Stored, digest_of};
use super::{Inner, blocking};
use crate::digest::{file_digest, hex};

/// A container image that the master decides about.
#[derive(Debug, Clone)]
pub enum Archive {
    /// The node's engine has it.
    Loaded,
    /// It is to be loaded from this file, which stays while the pin lives.
    File(PathBuf, Pin),
}

/// Brings the archive here that a name stands for at the master.
pub(super) async fn archive(
    inner: &Arc<Inner>,
    image: &str,
    reference: &Reference,
    loaded: Option<&str>,
) -> Result<Option<Archive>, ImageError> {
    let name = reference.to_string();
    let offer = match origin::find(inner, image).await {
        Ok(Some(offer)) if offer.imported && offer.content == Content::Archive => offer,
        Ok(_) => return Ok(None),
        Err(error) => {
            // what the master said last holds while it is away
            let (inner, name) = (inner.clone(), name.clone());
            let known =
                blocking(move || inner.store.find(&name).map_err(|error| ImageError::store(&name, error))).await?;
            let is_the_masters =
                known.is_some_and(|stored| stored.content == Content::Archive && stored.source == Source::Master);
            let holds = matches!(error, OriginError::Away(_)) && is_the_masters && loaded.is_some();
            return Ok(holds.then_some(Archive::Loaded));
        }
    };
    if loaded == Some(offer.digest.as_str()) {
        return Ok(Some(Archive::Loaded));
    }
    let failed = |error| ImageError::Pull { image: name.clone(), source: Arc::new(error) };
    let Offer { digest, blob, bytes, config, .. } = offer;
    let bytes_max = inner.limits.archive_bytes_max;
    if bytes > bytes_max {
        return Err(failed(PullError::TooBig { what: "the master's image".into(), bytes_max }));
    }
    let fetching = async {
        // never closed
        let _permit = inner.pulls.acquire().await.ok();
        origin::fetch(inner, image, &blob, bytes_max, PATIENCE).await
    };
    let (pin, bytes) = fetching.await.map_err(failed)?;
    let path = inner.store.blob_path(&blob);
    let (source, content) = (Source::Master, Content::Archive);
    let stored = Stored {
        reference: name,
        digest,
        blob,
        bytes,
        created: jiff::Timestamp::now().to_string(),
        config,
        source,
        content,
    };
    let (inner, at) = (inner.clone(), path.clone());
    blocking(move || {
        let failed = |error| ImageError::store(at, error);
        // on the master's own node it was imported, and stays so
        let known = inner.store.find(&stored.reference).map_err(|error| ImageError::store(&stored.reference, error))?;
        match known.is_some_and(|known| known.blob == stored.blob) {
            true => Ok(()),
            false => inner.store.record(&stored).map_err(failed),
        }
    })
    .await?;
    Ok(Some(Archive::File(path, pin)))
}

/// `manifest.json`
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Manifest {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Writes an archive.
pub(super) struct Writer {
    builder: Builder<NamedTempFile>,
    config: String,
    layers: Vec<String>,
    left: u64,
    bytes_max: u64,
}

impl Writer {
    pub(super) fn new(file: NamedTempFile, bytes_max: u64) -> Writer {
        Writer { builder: Builder::new(file), config: String::new(), layers: Vec::new(), left: bytes_max, bytes_max }
    }

    /// Takes the config; answers the image's id.
    pub(super) fn config(&mut self, text: &[u8]) -> Result<String, PullError> {
        let digest = digest_of(text);
        self.config = format!("{}.json", digest.trim_start_matches("sha256:"));
        let name = self.config.clone();
        self.append(&name, text.len() as u64, text)?;
        Ok(digest)
    }

    /// Takes the next layer, which must have the digest that its name says, if it says one.
    pub(super) fn layer(
        &mut self,
        what: &str,
        expected: Option<&str>,
        bytes: u64,
        from: impl Read,
    ) -> Result<(), PullError> {
        // numbers as names: one layer may come twice
        let name = format!("{}/layer.tar", self.layers.len());
        let mut hashed = Hashed { from, hasher: Sha256::new() };
        self.append(&name, bytes, &mut hashed)?;
        if let Some(expected) = expected {
            let found = hex(&hashed.hasher.finalize());
            check(what, &format!("sha256:{expected}"), &format!("sha256:{found}"))?;
        }
        self.layers.push(name);
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: u64, from: impl Read) -> Result<(), PullError> {
        let bytes_max = self.bytes_max;
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or_else(|| PullError::TooBig { what: "the container image".into(), bytes_max })?;
        let mut header = Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o644);
        header.set_mtime(0);
        let written = self.builder.append_data(&mut header, name, from);
        written.map_err(PullError::disk("cannot write into the image store"))
    }

    /// The whole under a name: the file, its digest (64 hexadecimal digits), its size.
    pub(super) fn finish(mut self, reference: &Reference) -> Result<(NamedTempFile, String, u64), PullError> {
        let Some(tag) = reference.tag() else {
            return Err(PullError::malformed("the image's name", "a container image needs a tag"));
        };
        let manifest = Manifest {
            config: std::mem::take(&mut self.config),
            repo_tags: vec![format!("{}:{tag}", reference.familiar_repository())],
            layers: std::mem::take(&mut self.layers),
        };
        let text = serde_json::to_vec(&[manifest]).map_err(|error| PullError::malformed("manifest.json", error))?;
        self.append("manifest.json", text.len() as u64, &text[..])?;
        let disk = || PullError::disk("cannot write into the image store");
        let mut file = self.builder.into_inner().map_err(disk())?;
        file.flush().map_err(disk())?;
        let blob = file_digest(file.path()).map_err(disk())?;
        let bytes = file.as_file().metadata().map_err(disk())?.len();
        Ok((file, blob, bytes))
    }
}

/// A reader that digests.
struct Hashed<R> {
    from: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
