//! Images as files: a `.wasm` file, an OCI image layout in a tar, or what `docker save` writes, packed or not.
//!
//! A container image stays an archive; it is written anew, so that its names are not the file's but the one given, and so that
//! any engine can load it, whichever of the two forms it came in.
//!
//! Everything here blocks.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;
use tempfile::NamedTempFile;

use super::archive::{self, Bounds, Lookup};
use super::artifact;
use super::error::PullError;
use super::manifest::{self, ContainerConfig, Descriptor, Found, Layout};
use super::reference::Reference;
use super::registry::check;
use super::store::{Content, ImageConfig, Pin, Store, digest_of};
use super::{ImageLimits, container};

/// Entries of an image file: blobs, and a few names.
const NAMES_MAX: usize = 4096;
/// Indexes inside indexes.
const DEPTH_MAX: usize = 3;

/// A program, brought into the store.
pub(super) struct Imported {
    pub digest: String,
    pub blob: String,
    pub bytes: u64,
    pub config: ImageConfig,
    pub content: Content,
    pub pin: Pin,
}

pub(super) fn import(
    store: &Store,
    path: &Path,
    reference: &Reference,
    limits: ImageLimits,
) -> Result<Imported, PullError> {
    let bounds = limits.bounds();
    let disk = || PullError::disk(path.display().to_string());
    let mut file = File::open(path).map_err(disk())?;
    let mut magic = Vec::new();
    (&mut file).take(4).read_to_end(&mut magic).map_err(disk())?;
    if magic == b"\0asm" {
        return wasm(store, path, bounds);
    }
    let what = path.display().to_string();
    let plain = plain(store, &what, file, limits.archive_bytes_max)?;
    let image = ImageFile::open(&what, plain, reference, limits)?;
    image.import(store, bounds)
}

fn wasm(store: &Store, path: &Path, bounds: Bounds) -> Result<Imported, PullError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let made = artifact::describe(path, &name, bounds.wasm_bytes_max)?;
    let disk = || PullError::disk(path.display().to_string());
    let mut temporary = store.temporary().map_err(disk())?;
    let mut file = File::open(path).map_err(disk())?;
    let (found, _) = archive::copy(&mut file, temporary.as_file_mut(), &name, bounds.wasm_bytes_max)?;
    check(&name, &format!("sha256:{}", made.blob), &format!("sha256:{found}"))?;
    let pin = store.commit(temporary, &made.blob)?;
    let config = ImageConfig { name, ..ImageConfig::default() };
    Ok(Imported { digest: made.digest, blob: made.blob, bytes: made.bytes, config, content: Content::Program, pin })
}

/// The archive as one that can be read from anywhere.
fn plain(store: &Store, what: &str, mut file: File, bytes_max: u64) -> Result<File, PullError> {
    let malformed = |error: io::Error| PullError::malformed(what, error);
    let mut magic = [0; 2];
    file.seek(SeekFrom::Start(0)).map_err(malformed)?;
    if file.read_exact(&mut magic).is_err() || magic != [0x1f, 0x8b] {
        return Ok(file);
    }
    let mut reader = archive::unpacked(&file).map_err(malformed)?;
    let temporary: NamedTempFile = store.temporary().map_err(PullError::disk(what))?;
    let mut out = temporary.as_file().try_clone().map_err(PullError::disk(what))?;
    archive::copy(&mut reader, &mut out, what, bytes_max)?;
    Ok(out)
}

/// A tar file and where its entries are.
struct ImageFile<'a> {
    what: &'a str,
    file: File,
    entries: HashMap<String, (u64, u64)>,
    /// The name that the image gets.
    reference: &'a Reference,
    limits: ImageLimits,
}

/// `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
}

impl<'a> ImageFile<'a> {
    fn open(
        what: &'a str,
        file: File,
        reference: &'a Reference,
        limits: ImageLimits,
    ) -> Result<ImageFile<'a>, PullError> {
        let mut reader = file.try_clone().map_err(PullError::disk(what))?;
        reader.seek(SeekFrom::Start(0)).map_err(PullError::disk(what))?;
        let mut entries = HashMap::new();
        archive::walk(what, reader, |name, kind, entry| {
            if entries.len() >= NAMES_MAX {
                return Err(PullError::malformed(what, format!("more than {NAMES_MAX} entries")));
            }
            if kind.is_file() {
                entries.insert(name.to_owned(), (entry.raw_file_position(), entry.size()));
            }
            Ok(())
        })?;
        Ok(ImageFile { what, file, entries, reference, limits })
    }

    fn import(&self, store: &Store, bounds: Bounds) -> Result<Imported, PullError> {
        if self.entries.contains_key("index.json") {
            let index = self.read("index.json")?;
            return self.layout(store, bounds, &index, digest_of(&index), 0);
        }
        if self.entries.contains_key("manifest.json") {
            return self.saved(store, bounds);
        }
        let detail = "neither a .wasm file, nor a tar of an OCI image layout, nor one of docker save";
        Err(PullError::malformed(self.what, detail))
    }

    fn layout(
        &self,
        store: &Store,
        bounds: Bounds,
        text: &[u8],
        digest: String,
        depth: usize,
    ) -> Result<Imported, PullError> {
        let manifest = match manifest::read(text)? {
            Found::Manifest(manifest) => manifest,
            Found::Index(_) if depth >= DEPTH_MAX => {
                return Err(PullError::malformed(self.what, "indexes inside indexes"));
            }
            Found::Index(entries) => {
                let Some(chosen) = manifest::choose(&entries) else {
                    let what = format!("{} ({})", self.what, manifest::platforms(&entries));
                    return Err(PullError::NotWasm { what });
                };
                let text = self.blob(chosen)?;
                return self.layout(store, bounds, &text, chosen.digest.clone(), depth + 1);
            }
        };
        match manifest.layout() {
            Layout::Artifact(layer) => {
                let (mut temporary, expected) = (self.temporary(store)?, layer.hex()?);
                let mut entry = self.entry(&blob_name(&layer)?)?;
                let what = format!("layer {}", layer.digest);
                let (found, bytes) = archive::copy(&mut entry, temporary.as_file_mut(), &what, bounds.wasm_bytes_max)?;
                check(&what, &layer.digest, &format!("sha256:{found}"))?;
                let title = layer.annotations.get("org.opencontainers.image.title");
                let name = title.cloned().unwrap_or_else(|| "app.wasm".into());
                let config = ImageConfig { name, ..ImageConfig::default() };
                let pin = store.commit(temporary, expected)?;
                Ok(Imported { digest, blob: expected.to_owned(), bytes, config, content: Content::Program, pin })
            }
            Layout::Image { marked } => {
                let text = self.blob(&manifest.config)?;
                let config = ContainerConfig::read(&text)?;
                let layers = manifest.layers.iter().map(blob_name).collect::<Result<Vec<_>, _>>()?;
                if !config.is_wasm(marked) {
                    return self.container(store, &text, &layers);
                }
                self.image(store, bounds, digest, &config, &layers)
            }
            Layout::Other(kind) => Err(PullError::NotWasm { what: format!("{} ({kind})", self.what) }),
        }
    }

    fn saved(&self, store: &Store, bounds: Bounds) -> Result<Imported, PullError> {
        let text = self.read("manifest.json")?;
        let images: Vec<Saved> =
            serde_json::from_slice(&text).map_err(|error| PullError::malformed("manifest.json", error))?;
        let [saved] = &images[..] else {
            return Err(PullError::malformed(self.what, format!("{} images; want one", images.len())));
        };
        let text = self.read(&saved.config)?;
        let config = ContainerConfig::read(&text)?;
        if !config.is_wasm(false) {
            return self.container(store, &text, &saved.layers);
        }
        self.image(store, bounds, digest_of(&text), &config, &saved.layers)
    }

    fn image(
        &self,
        store: &Store,
        bounds: Bounds,
        digest: String,
        config: &ContainerConfig,
        layers: &[String],
    ) -> Result<Imported, PullError> {
        let path = program_path(config)?;
        let mut out = self.temporary(store)?;
        for (number, name) in layers.iter().enumerate().rev() {
            let mut layer = self.temporary(store)?;
            let mut entry = self.entry(name)?;
            let (found, _) = archive::copy(&mut entry, layer.as_file_mut(), name, bounds.unpacked_bytes_max)?;
            if let Some(expected) = name.strip_prefix("blobs/sha256/") {
                check(name, &format!("sha256:{expected}"), &format!("sha256:{found}"))?;
            }
            let diff_id = config.diff_id(number);
            match archive::find(name, layer.as_file(), diff_id, &path, out.as_file_mut(), bounds)? {
                Lookup::Here(blob, bytes) => {
                    let pin = store.commit(out, &blob)?;
                    let config = config.image_config(&path);
                    return Ok(Imported { digest, blob, bytes, config, content: Content::Program, pin });
                }
                Lookup::Hidden => break,
                Lookup::Absent => {}
            }
        }
        Err(no_program(&path))
    }

    /// A container image, written anew as an archive of it alone.
    fn container(&self, store: &Store, config: &[u8], layers: &[String]) -> Result<Imported, PullError> {
        let mut archive = container::Writer::new(self.temporary(store)?, self.limits.archive_bytes_max);
        let digest = archive.config(config)?;
        for name in layers {
            let entry = self.entry(name)?;
            let expected = name.strip_prefix("blobs/sha256/");
            archive.layer(name, expected, entry.limit(), entry)?;
        }
        let (file, blob, bytes) = archive.finish(self.reference)?;
        let pin = store.commit(file, &blob)?;
        let (config, content) = (ImageConfig::default(), Content::Archive);
        Ok(Imported { digest, blob, bytes, config, content, pin })
    }

    fn temporary(&self, store: &Store) -> Result<NamedTempFile, PullError> {
        store.temporary().map_err(PullError::disk(format!("cannot import {}", self.what)))
    }

    fn entry(&self, name: &str) -> Result<io::Take<File>, PullError> {
        let (at, bytes) = self.entries.get(name.trim_start_matches("./")).copied().ok_or_else(|| {
            // A name in a hostile file can be as long as the file.
            PullError::NotFound { what: format!("{:?} in {}", name.chars().take(200).collect::<String>(), self.what) }
        })?;
        let mut file = self.file.try_clone().map_err(PullError::disk(self.what))?;
        file.seek(SeekFrom::Start(at)).map_err(PullError::disk(self.what))?;
        Ok(file.take(bytes))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, PullError> {
        let mut text = Vec::new();
        let entry = self.entry(name)?;
        if entry.limit() > self.limits.manifest_bytes_max {
            let bytes_max = self.limits.manifest_bytes_max;
            return Err(PullError::TooBig { what: name.to_owned(), bytes_max });
        }
        { entry }.read_to_end(&mut text).map_err(PullError::disk(self.what))?;
        Ok(text)
    }

    /// A small blob, verified.
    fn blob(&self, blob: &Descriptor) -> Result<Vec<u8>, PullError> {
        let text = self.read(&blob_name(blob)?)?;
        check("manifest", &blob.digest, &digest_of(&text))?;
        Ok(text)
    }
}

fn blob_name(blob: &Descriptor) -> Result<String, PullError> {
    Ok(format!("blobs/sha256/{}", blob.hex()?))
}

/// The path in its layers of what an image runs.
pub(super) fn program_path(config: &ContainerConfig) -> Result<String, PullError> {
    config
        .program_path()
        .ok_or_else(|| PullError::malformed("image config", "its entrypoint does not say which file is the program"))
}

pub(super) fn no_program(path: &str) -> PullError {
    PullError::malformed("image", format!("no layer has its entrypoint /{path}"))
}
