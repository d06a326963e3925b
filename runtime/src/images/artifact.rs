//! A `.wasm` file as an image: the manifest and config of the CNCF Wasm artifact layout.
//!
//! The same file always makes the same manifest, whoever pushes or imports it, and whenever.

use std::path::Path;

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use wasmparser::{Parser, Payload};

use super::error::PullError;
use super::manifest::{Descriptor, OCI_MANIFEST, WASM_CONFIG, WASM_LAYER};
use super::store::digest_of;
use crate::digest::hex;

/// What is sent beside the file.
pub(super) struct Artifact {
    pub config: Bytes,
    pub manifest: Bytes,
    /// Of the manifest.
    pub digest: String,
    /// Of the file, 64 hexadecimal digits.
    pub blob: String,
    pub bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    created: &'static str,
    architecture: &'static str,
    os: &'static str,
    layer_digests: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    component: Option<Component>,
}

/// What a component's world is.
#[derive(Debug, Default, Serialize)]
struct Component {
    exports: Vec<String>,
    imports: Vec<String>,
    target: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'static str,
    config: &'a Descriptor,
    layers: &'a [Descriptor],
}

/// Reads the file whole: a component's config names what it imports.
pub(super) fn describe(path: &Path, title: &str, bytes_max: u64) -> Result<Artifact, PullError> {
    let what = || path.display().to_string();
    let read = std::fs::metadata(path).and_then(|metadata| match metadata.is_file() {
        true if metadata.len() > bytes_max => Ok(None),
        true => std::fs::read(path).map(Some),
        false => Err(std::io::Error::other("it is not a regular file")),
    });
    let Some(wasm) = read.map_err(PullError::disk(what()))? else {
        return Err(PullError::TooBig { what: what(), bytes_max });
    };
    let component = match wasm[..] {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => None,
        [0, b'a', b's', b'm', _, 0, 1, 0, ..] => {
            Some(world(&wasm).map_err(|error| PullError::malformed(what(), error))?)
        }
        _ => return Err(PullError::malformed(what(), "it is neither a Wasm module nor a component")),
    };
    let blob = hex(&Sha256::digest(&wasm));
    let layer = descriptor(WASM_LAYER, format!("sha256:{blob}"), wasm.len() as u64, title);
    let config = Config {
        // A time would make each push another image.
        created: "1970-01-01T00:00:00Z",
        architecture: "wasm",
        os: if component.is_some() { "wasip2" } else { "wasip1" },
        layer_digests: vec![layer.digest.clone()],
        component,
    };
    let config = json(&config)?;
    let about = descriptor(WASM_CONFIG, digest_of(&config), config.len() as u64, "");
    let manifest = Manifest { schema_version: 2, media_type: OCI_MANIFEST, config: &about, layers: &[layer] };
    let manifest = json(&manifest)?;
    Ok(Artifact { config, digest: digest_of(&manifest), manifest, blob, bytes: wasm.len() as u64 })
}

fn json(value: &impl Serialize) -> Result<Bytes, PullError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| PullError::malformed("manifest", error))
}

fn descriptor(media_type: &str, digest: String, size: u64, title: &str) -> Descriptor {
    let title = Some(title).filter(|title| !title.is_empty());
    let annotations = title.map(|title| ("org.opencontainers.image.title".to_owned(), title.to_owned()));
    let annotations = annotations.into_iter().collect();
    Descriptor { media_type: media_type.to_owned(), digest, size, annotations, platform: None }
}

/// The imports and exports of the outermost component.
fn world(wasm: &[u8]) -> Result<Component, wasmparser::BinaryReaderError> {
    let (mut found, mut depth) = (Component::default(), 0);
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    found.imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    found.exports.push(export?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn made(text: &str) -> (Artifact, Value, Value) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.wasm");
        std::fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
        let made = describe(&path, "app.wasm", 1 << 20).unwrap();
        let read = |bytes: &Bytes| serde_json::from_slice(bytes).unwrap();
        let (config, manifest) = (read(&made.config), read(&made.manifest));
        (made, config, manifest)
    }

    #[test]
    fn a_module() {
        let (made, config, manifest) = made("(module)");
        let layer = format!("sha256:{}", made.blob);
        let created = "1970-01-01T00:00:00Z";
        let want = json!({"created": created, "architecture": "wasm", "os": "wasip1", "layerDigests": [layer]});
        assert_eq!(config, want);
        let want = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.wasm.config.v0+json",
                "digest": digest_of(&made.config),
                "size": made.config.len(),
            },
            "layers": [{
                "mediaType": "application/wasm",
                "digest": layer,
                "size": 8,
                "annotations": {"org.opencontainers.image.title": "app.wasm"},
            }],
        });
        assert_eq!(manifest, want);
    }

    #[test]
    fn a_component_names_its_world() {
        let (_, config, _) = made(
            r#"(component (import "a:b/c@0.1.0" (instance)) (component (import "inner" (instance))) (instance $i)
                (export "d:e/f" (instance $i)))"#,
        );
        assert_eq!(config["os"], "wasip2");
        assert_eq!(config["component"], json!({"exports": ["d:e/f"], "imports": ["a:b/c@0.1.0"], "target": null}));
    }
}
