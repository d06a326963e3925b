//! Who a registry is asked as: the credentials of `imagePullSecrets`, and which of them fit an image.
//!
//! Deliberately absent: credential helper programs (`credsStore`, `credHelpers`), as with the kubelet's secrets.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::reference::{DEFAULT_HOST, Reference};

/// A user of a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// Where it holds: `host[:port][/path]`, each part of the host possibly with `*`. Schemes are allowed and ignored.
    pub server: String,
    /// The user.
    pub username: String,
    /// The user's password or token.
    pub password: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("server", &self.server)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Why a Secret holds no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Secrets of this type hold none.
    #[error("a secret of type {found:?} holds no registry credentials: want kubernetes.io/dockerconfigjson")]
    Type {
        /// The Secret's type.
        found: String,
    },
    /// The type's key is not there.
    #[error("the secret has no key {key:?}")]
    Key {
        /// The missing key.
        key: &'static str,
    },
    /// The key's value is not what the type says. Its text is not repeated: it is a secret.
    #[error("the secret's key {key:?} is no Docker configuration: {detail}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong.
        detail: String,
    },
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

/// The credentials in a Secret of type `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`; `value` gives the
/// (decoded) value of a key of its data.
pub fn credentials_of<'a>(
    secret_type: &str,
    value: impl Fn(&str) -> Option<&'a [u8]>,
) -> Result<Vec<Credential>, CredentialsError> {
    match secret_type {
        "kubernetes.io/dockerconfigjson" => {
            let key = ".dockerconfigjson";
            docker_config(value(key).ok_or(CredentialsError::Key { key })?)
                .map_err(|detail| CredentialsError::Value { key, detail })
        }
        "kubernetes.io/dockercfg" => {
            let key = ".dockercfg";
            let text = value(key).ok_or(CredentialsError::Key { key })?;
            json::<BTreeMap<String, Entry>>(text)
                .and_then(entries)
                .map_err(|detail| CredentialsError::Value { key, detail })
        }
        _ => Err(CredentialsError::Type { found: secret_type.to_owned() }),
    }
}

/// The credentials in a file like `~/.docker/config.json`.
pub fn docker_config(text: &[u8]) -> Result<Vec<Credential>, String> {
    json::<ConfigFile>(text).map(|file| file.auths).and_then(entries)
}

/// serde's message can quote the value, which is a secret: only the place is told.
fn json<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    serde_json::from_slice(text).map_err(|error| {
        let kind = if error.is_data() { "unexpected value" } else { "invalid JSON" };
        format!("{kind} at line {} column {}", error.line(), error.column())
    })
}

fn entries(found: BTreeMap<String, Entry>) -> Result<Vec<Credential>, String> {
    let mut credentials = Vec::new();
    for (server, entry) in found {
        let (username, password) = match entry.auth.is_empty() {
            true => (entry.username, entry.password),
            false => {
                let auth = entry.auth.trim();
                let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).ok();
                let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
                let pair = text.as_deref().and_then(|text| text.split_once(':'));
                let (username, password) =
                    pair.ok_or_else(|| format!("the auth of {server:?} is no base64 of USER:PASSWORD"))?;
                // docker pads some with NULs
                (username.to_owned(), password.trim_end_matches('\0').to_owned())
            }
        };
        // Entries of credential helpers are empty.
        if !username.is_empty() || !password.is_empty() {
            credentials.push(Credential { server, username, password });
        }
    }
    Ok(credentials)
}

/// The credentials for an image, in the order in which they are tried: the most specific first.
pub fn matching<'a>(credentials: &'a [Credential], reference: &Reference) -> Vec<&'a Credential> {
    let mut found: Vec<(Place<'_>, &Credential)> = credentials
        .iter()
        .map(|credential| (place(&credential.server), credential))
        .filter(|(place, _)| fits(place, reference))
        .collect();
    // Longer paths before shorter ones, hosts before patterns.
    found.sort_by_key(|(place, _)| (std::cmp::Reverse(place.path.len()), place.host.matches('*').count()));
    found.into_iter().map(|(_, credential)| credential).collect()
}

/// Where a credential holds.
struct Place<'a> {
    host: &'a str,
    path: &'a str,
}

fn place(server: &str) -> Place<'_> {
    let server = server.trim();
    let server = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    let (host, path) = server.split_once('/').unwrap_or((server, ""));
    // The API's versions are no part of a name: https://index.docker.io/v1/
    let path = match path.split('/').next() {
        Some("v1" | "v2") => "",
        _ => path.trim_end_matches('/'),
    };
    let host = if host == "index.docker.io" || host == "registry-1.docker.io" { DEFAULT_HOST } else { host };
    Place { host, path }
}

fn fits(place: &Place<'_>, reference: &Reference) -> bool {
    let split = |host: &str| match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name.to_ascii_lowercase(), port.to_owned()),
        _ => (host.to_ascii_lowercase(), String::new()),
    };
    let ((pattern, port), (host, wanted_port)) = (split(place.host), split(reference.host()));
    let (patterns, parts): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    let path = reference.path();
    port == wanted_port
        && patterns.len() == parts.len()
        && patterns.iter().zip(&parts).all(|(pattern, part)| glob(pattern, part))
        && path
            .strip_prefix(place.path)
            .is_some_and(|rest| place.path.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

/// `*` stands for any run of characters.
fn glob(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::super::reference::{Parsed, parse};
    use super::*;

    fn servers(all: &[&str], image: &str) -> Vec<String> {
        let credentials: Vec<Credential> = all
            .iter()
            .map(|server| Credential { server: (*server).into(), username: "u".into(), password: "p".into() })
            .collect();
        let Parsed::Registry(reference) = parse(image).unwrap() else { panic!("{image} is in no registry") };
        matching(&credentials, &reference).into_iter().map(|found| found.server.clone()).collect()
    }

    #[test]
    fn the_most_specific_first() {
        for (all, image, want) in [
            (&["https://index.docker.io/v1/", "quay.io"][..], "nginx", &["https://index.docker.io/v1/"][..]),
            (&["docker.io"], "docker.io/a/b:1", &["docker.io"]),
            (
                &["*.example.com", "r.example.com", "r.example.com/team"],
                "r.example.com/team/app",
                &["r.example.com/team", "r.example.com", "*.example.com"],
            ),
            (&["r.example.com/team"], "r.example.com/teams/app", &[]),
            (&["*.example.com"], "a.b.example.com/app", &[]),
            (&["r*y.example.com"], "registry.example.com/app", &["r*y.example.com"]),
            (&["localhost"], "localhost:5000/app", &[]),
            (&["http://localhost:5000/v2/"], "localhost:5000/app", &["http://localhost:5000/v2/"]),
            (&["*.*"], "r.example.com/app", &[]),
        ] {
            assert_eq!(servers(all, image), want, "{image}");
        }
    }

    #[test]
    fn secrets() {
        let read = |kind: &str, key: &'static str, text: &'static str| {
            credentials_of(kind, |asked| (asked == key).then_some(text.as_bytes()))
                .map(|found| {
                    let show = |c: &Credential| format!("{} {}:{}", c.server, c.username, c.password);
                    found.iter().map(show).collect::<Vec<_>>().join(", ")
                })
                .unwrap_or_else(|error| error.to_string().replace("the secret's key \".dockerconfigjson\" is ", ""))
        };
        let (new, old) = ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg");
        for (kind, key, text, want) in [
            (new, ".dockerconfigjson", r#"{"auths":{"a":{"auth":"dTpwOnE="}}}"#, "a u:p:q"),
            (new, ".dockerconfigjson", r#"{"auths":{"a":{"username":"u","password":"p"},"b":{}}}"#, "a u:p"),
            (old, ".dockercfg", r#"{"a":{"auth":"dTpw","email":"x"}}"#, "a u:p"),
            (new, ".dockerconfigjson", "{", "no Docker configuration: invalid JSON at line 1 column 1"),
            (
                new,
                ".dockerconfigjson",
                r#"{"auths":{"a":{"auth":"%%"}}}"#,
                "no Docker configuration: the auth of \"a\" is no base64 of USER:PASSWORD",
            ),
            (
                new,
                ".dockerconfigjson",
                r#"{"auths":["s3cret"]}"#,
                "no Docker configuration: unexpected value at line 1 column 9",
            ),
            (new, "config.json", "{}", "the secret has no key \".dockerconfigjson\""),
            (
                "Opaque",
                "x",
                "{}",
                "a secret of type \"Opaque\" holds no registry credentials: want kubernetes.io/dockerconfigjson",
            ),
        ] {
            assert_eq!(read(kind, key, text), want);
        }
    }
}
