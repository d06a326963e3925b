//! The JSON of registries: manifests, indexes, configs; and which of them are Wasm.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::PullError;
use super::store::ImageConfig;

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub(super) const WASM_LAYER: &str = "application/wasm";
/// What tools wrote before the layout was agreed on.
const OLD_WASM_CONFIG: &str = "application/vnd.wasm.config.v1+json";
const OLD_WASM_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";

/// Layers of one image.
const LAYERS_MAX: usize = 128;

/// A blob of a registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// The 64 hexadecimal digits of its digest.
    pub(super) fn hex(&self) -> Result<&str, PullError> {
        let hex = self.digest.strip_prefix("sha256:");
        hex.filter(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
            .ok_or_else(|| PullError::malformed("manifest", format!("unusable digest {:?}", self.digest)))
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
}

impl Platform {
    fn is_wasm(&self) -> bool {
        self.architecture.starts_with("wasm") || self.os.starts_with("wasi")
    }
}

/// A manifest or an index: which one shows in what is there.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    artifact_type: Option<String>,
}

/// One image of one platform.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
    artifact_type: Option<String>,
}

/// A document, sorted out.
#[derive(Debug, Clone)]
pub(super) enum Found {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

/// What a manifest alone tells.
#[derive(Debug, Clone)]
pub(super) enum Layout {
    /// The program is a blob of its own.
    Artifact(Descriptor),
    /// A container image: whether it is Wasm, its config tells.
    Image {
        /// Its annotations say that it is Wasm.
        marked: bool,
    },
    /// Something else that registries hold.
    Other(String),
}

pub(super) fn read(text: &[u8]) -> Result<Found, PullError> {
    let document: Document = serde_json::from_slice(text).map_err(|error| PullError::malformed("manifest", error))?;
    if document.schema_version != 2 {
        let detail = format!("unsupported schema version {}", document.schema_version);
        return Err(PullError::malformed("manifest", detail));
    }
    if let Some(manifests) = document.manifests {
        return Ok(Found::Index(manifests));
    }
    let Some(config) = document.config else {
        return Err(PullError::malformed("manifest", "it has neither a config nor manifests"));
    };
    if document.layers.len() > LAYERS_MAX {
        return Err(PullError::malformed("manifest", format!("more than {LAYERS_MAX} layers")));
    }
    let (annotations, artifact_type) = (document.annotations, document.artifact_type);
    Ok(Found::Manifest(Manifest { config, layers: document.layers, annotations, artifact_type }))
}

/// The Wasm image of an index, `wasi/wasm` before its kin; or its only image, which may be Wasm without saying so.
pub(super) fn choose(index: &[Descriptor]) -> Option<&Descriptor> {
    let platform = |entry: &Descriptor| entry.platform.clone().unwrap_or_default();
    let rank = |entry: &&Descriptor| match platform(entry) {
        found if found.architecture == "wasm" && found.os == "wasi" => 0,
        found if found.architecture == "wasm" => 1,
        _ => 2,
    };
    // Attestations lie beside images under the platform unknown/unknown.
    let images = || index.iter().filter(|entry| platform(entry).os != "unknown");
    let wasm = images().filter(|entry| platform(entry).is_wasm()).min_by_key(rank);
    wasm.or_else(|| images().next().filter(|_| images().count() == 1))
}

/// What an index holds, for the message that nothing fits.
pub(super) fn platforms(index: &[Descriptor]) -> String {
    let names = index.iter().take(16).filter_map(|entry| entry.platform.as_ref());
    names.map(|found| format!("{}/{}", found.os, found.architecture)).collect::<Vec<_>>().join(", ")
}

impl Manifest {
    pub(super) fn layout(&self) -> Layout {
        let is_wasm = |layer: &&Descriptor| matches!(layer.media_type.as_str(), WASM_LAYER | OLD_WASM_LAYER);
        let config = self.config.media_type.as_str();
        if let Some(layer) = self.layers.iter().find(is_wasm) {
            return Layout::Artifact(layer.clone());
        }
        if matches!(config, WASM_CONFIG | OLD_WASM_CONFIG) {
            return Layout::Other(format!("a {config} without a layer of type {WASM_LAYER}"));
        }
        match config {
            "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => {
                Layout::Image { marked: is_marked(&self.annotations) }
            }
            other => Layout::Other(self.artifact_type.as_deref().unwrap_or(other).to_owned()),
        }
    }
}

fn is_marked(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get("module.wasm.image/variant").is_some_and(|variant| variant.starts_with("compat"))
        || annotations.get("run.oci.handler").is_some_and(|handler| handler.starts_with("wasm"))
}

/// The config of a container image, as far as it concerns us.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct ContainerConfig {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    config: Option<RunConfig>,
    #[serde(default)]
    rootfs: Option<RootFs>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

impl ContainerConfig {
    pub(super) fn read(text: &[u8]) -> Result<ContainerConfig, PullError> {
        serde_json::from_slice(text).map_err(|error| PullError::malformed("image config", error))
    }

    fn run(&self) -> RunConfig {
        self.config.clone().unwrap_or_default()
    }

    /// The first word of what it runs.
    fn program(&self) -> Option<String> {
        let run = self.run();
        run.entrypoint.unwrap_or_default().into_iter().chain(run.cmd.unwrap_or_default()).next()
    }

    /// By platform, by mark, or because what it runs is a `.wasm` file, which no kernel does.
    pub(super) fn is_wasm(&self, marked: bool) -> bool {
        marked
            || self.platform.is_wasm()
            || self.run().labels.as_ref().is_some_and(is_marked)
            || self.program().is_some_and(|program| program.ends_with(".wasm"))
    }

    /// `linux/amd64`
    pub(super) fn platform(&self) -> String {
        format!("{}/{}", self.platform.os, self.platform.architecture)
    }

    /// The path of the program in the image's layers, without a slash before it; none if the image runs nothing.
    pub(super) fn program_path(&self) -> Option<String> {
        let program = self.program()?;
        let dir = self.run().working_dir.unwrap_or_default();
        let whole = if program.starts_with('/') { program } else { format!("{dir}/{program}") };
        let mut parts: Vec<&str> = Vec::new();
        for part in whole.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        Some(parts.join("/"))
    }

    /// The digest of a layer when it is unpacked.
    pub(super) fn diff_id(&self, layer: usize) -> Option<&str> {
        self.rootfs.as_ref()?.diff_ids.as_ref()?.get(layer).map(String::as_str)
    }

    /// How it wants to be run. `path` is where the program was found.
    pub(super) fn image_config(&self, path: &str) -> ImageConfig {
        let run = self.run();
        let env = run.env.unwrap_or_default().iter().filter_map(|pair| pair.split_once('=')).map(own).collect();
        ImageConfig {
            name: path.rsplit('/').next().unwrap_or(path).to_owned(),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env,
            working_dir: run.working_dir.filter(|dir| !dir.is_empty()),
        }
    }
}

fn own((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}
