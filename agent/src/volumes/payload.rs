//! The files that configMap, secret, downwardAPI and projected volumes show, computed from the world.
//!
//! Pure: paths, bytes and modes; `atomic` writes them.

use super::VolumeError;
use crate::fields::{self, PodFacts};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, PodSpec, ProjectedVolumeSource, Secret, Volume, VolumeProjection,
};
use state::World;
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// Kubernetes' default of `defaultMode`.
const MODE: u32 = 0o644;

/// The files of a volume: relative path to content and mode.
pub type Payload = BTreeMap<String, File>;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// What payloads are computed from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its namespace.
    pub namespace: &'a str,
    /// The world now.
    pub world: &'a World,
    /// The downward API's other values.
    pub facts: &'a PodFacts,
}

/// The files of a volume; none when it is not one of those whose files are objects' data.
pub fn payload(volume: &Volume, source: Source<'_>) -> Result<Payload, VolumeError> {
    let mut payload = Payload::new();
    if let Some(map) = &volume.config_map {
        let mode = mode(map.default_mode, MODE);
        config_map(&mut payload, source, &map.name, map.items.as_deref(), map.optional, mode)?;
    } else if let Some(secret_volume) = &volume.secret {
        let mode = mode(secret_volume.default_mode, MODE);
        let name = secret_volume.secret_name.as_deref().unwrap_or_default();
        secret(&mut payload, source, name, secret_volume.items.as_deref(), secret_volume.optional, mode)?;
    } else if let Some(downward) = &volume.downward_api {
        downward_api(&mut payload, source, downward.items.as_deref(), mode(downward.default_mode, MODE))?;
    } else if let Some(projected) = &volume.projected {
        self::projected(&mut payload, source, projected)?;
    }
    Ok(payload)
}

fn projected(payload: &mut Payload, source: Source<'_>, projected: &ProjectedVolumeSource) -> Result<(), VolumeError> {
    let mode = mode(projected.default_mode, MODE);
    for part in projected.sources.iter().flatten() {
        project(payload, source, part, mode)?;
    }
    Ok(())
}

fn project(payload: &mut Payload, source: Source<'_>, part: &VolumeProjection, mode: u32) -> Result<(), VolumeError> {
    if let Some(map) = &part.config_map {
        config_map(payload, source, &map.name, map.items.as_deref(), map.optional, mode)?;
    }
    if let Some(wanted) = &part.secret {
        secret(payload, source, &wanted.name, wanted.items.as_deref(), wanted.optional, mode)?;
    }
    if let Some(downward) = &part.downward_api {
        downward_api(payload, source, downward.items.as_deref(), mode)?;
    }
    let unsupported = [
        ("serviceAccountToken", part.service_account_token.is_some()),
        ("clusterTrustBundle", part.cluster_trust_bundle.is_some()),
        ("podCertificate", part.pod_certificate.is_some()),
    ];
    match unsupported.iter().find(|(_, is_wanted)| *is_wanted) {
        // no token is issued to pods yet, and a false one would mislead
        Some((name, _)) => {
            Err(VolumeError::unsupported(format!("projected source {name} is not supported by this node")))
        }
        None => Ok(()),
    }
}

fn config_map(
    payload: &mut Payload,
    source: Source<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
) -> Result<(), VolumeError> {
    let Some(map) = source.world.view::<ConfigMap>(source.namespace, name) else {
        return if optional == Some(true) {
            Ok(())
        } else {
            Err(VolumeError::missing(format!("configmap {name:?} not found")))
        };
    };
    let mut data: BTreeMap<&str, &[u8]> =
        map.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes())).collect();
    data.extend(map.binary_data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice())));
    pick(payload, "config", &data, items, optional, mode)
}

fn secret(
    payload: &mut Payload,
    source: Source<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
) -> Result<(), VolumeError> {
    let Some(secret) = source.world.view::<Secret>(source.namespace, name) else {
        return if optional == Some(true) {
            Ok(())
        } else {
            Err(VolumeError::missing(format!("secret {name:?} not found")))
        };
    };
    let value = |(key, ByteString(value)): (&'_ String, &'_ ByteString)| (key.clone(), value.clone());
    let data: BTreeMap<String, Vec<u8>> = secret.data.iter().flatten().map(value).collect();
    let data = data.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
    pick(payload, "secret", &data, items, optional, mode)
}

/// All keys, or those that `items` name under the paths they give.
fn pick(
    payload: &mut Payload,
    word: &str,
    data: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    default: u32,
) -> Result<(), VolumeError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, value) in data {
            insert(payload, key, value.to_vec(), default)?;
        }
        return Ok(());
    };
    for item in items {
        match data.get(item.key.as_str()) {
            Some(value) => insert(payload, &item.path, value.to_vec(), mode(item.mode, default))?,
            None if optional == Some(true) => {}
            None => return Err(VolumeError::missing(format!("references non-existent {word} key: {}", item.key))),
        }
    }
    Ok(())
}

fn downward_api(
    payload: &mut Payload,
    source: Source<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    default: u32,
) -> Result<(), VolumeError> {
    let empty = PodSpec::default();
    let spec = source.pod.spec.as_ref().unwrap_or(&empty);
    for item in items.unwrap_or_default() {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => fields::field(source.pod, source.facts, &field.field_path),
            (None, Some(resource)) => fields::resource(spec, source.facts, "", resource),
            (None, None) => Ok(String::new()),
        };
        let value = value.map_err(|error| VolumeError::unsupported(error.to_string()))?;
        insert(payload, &item.path, value.into_bytes(), mode(item.mode, default))?;
    }
    Ok(())
}

fn insert(payload: &mut Payload, path: &str, bytes: Vec<u8>, mode: u32) -> Result<(), VolumeError> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !plain || path.starts_with("..") {
        return Err(VolumeError::unsupported(format!("invalid path: {path:?}")));
    }
    payload.insert(path.to_owned(), File { bytes, mode });
    Ok(())
}

fn mode(wanted: Option<i32>, default: u32) -> u32 {
    wanted.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(default) & 0o777
}
