//! How people and nodes get in: the admin's kubeconfig and the join token, files in the data directory.

use crate::entropy;
use crate::pki::{Pair, Pki, write_private};
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::fs;
use std::path::Path;

/// The user name that kubeconfig's context has.
const ADMIN: &str = "default";

/// A kubeconfig with one context, credentials inline. JSON is YAML, but people read this file: it is YAML.
pub fn kubeconfig(server: &str, server_ca: &str, admin: &Pair) -> String {
    let encode = |pem: &str| STANDARD.encode(pem);
    manifests::yaml::to_string(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": ADMIN, "cluster": {
            "server": server,
            "certificate-authority-data": encode(server_ca),
        }}],
        "users": [{"name": ADMIN, "user": {
            "client-certificate-data": encode(&admin.certificate),
            "client-key-data": encode(&admin.key),
        }}],
        "contexts": [{"name": ADMIN, "context": {"cluster": ADMIN, "user": ADMIN}}],
        "current-context": ADMIN,
        "preferences": {},
    }))
}

/// The join token, `K10<sha256 of the server CA>::server:<secret>`: the given secret, else the one on disk, else a
/// new one.
pub fn join_token(dir: &Path, pki: &Pki, given: Option<&str>) -> Result<String> {
    let file = dir.join("token");
    let kept = match fs::read_to_string(&file) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    let secret = match (given, &kept) {
        (Some(given), _) => secret_of(given).to_owned(),
        (None, Some(kept)) => secret_of(kept).to_owned(),
        (None, None) => entropy::secret().context("make a token")?,
    };
    let token = format!("K10{}::server:{secret}", pki.server_ca_sha256()?);
    if kept.as_deref() != Some(&token) {
        write_private(&file, token.as_bytes())?;
    }
    Ok(token)
}

/// A token may be given whole or as its secret alone.
fn secret_of(token: &str) -> &str {
    token.rsplit_once(':').map_or(token, |(_, secret)| secret)
}
