//! One repository of a registry: manifests and blobs, fetched and verified, or put there; and who asks, by password or
//! token.

use std::fs::File;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Response};
use hyper::body::Incoming;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use url::Url;

use super::credentials::Credential;
use super::error::PullError;
use super::manifest::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, OCI_INDEX, OCI_MANIFEST};
use super::reference::Reference;
use super::store::digest_of;
use super::transport::{
    Connections, Payload, Transport, content_length, header, location, next, read_all, refusal, transport_error,
};
use crate::digest::hex;

/// What a token server may answer.
const TOKEN_BYTES_MAX: u64 = 1 << 20;
const MANIFESTS: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// A repository, as one user.
pub(super) struct Registry<'a> {
    connections: Connections<'a>,
    reference: &'a Reference,
    base: Url,
    loopback: bool,
    credential: Option<&'a Credential>,
    authorization: Option<HeaderValue>,
    actions: &'static str,
    manifest_bytes_max: u64,
}

/// A manifest as it came.
pub(super) struct Fetched {
    pub digest: String,
    pub text: Bytes,
}

impl<'a> Registry<'a> {
    pub(super) fn new(
        transport: &'a Arc<Transport>,
        reference: &'a Reference,
        credential: Option<&'a Credential>,
        actions: &'static str,
        manifest_bytes_max: u64,
    ) -> Result<Registry<'a>, PullError> {
        let base = Url::parse(&format!("https://{}/v2/", reference.api_host()))
            .map_err(|error| PullError::malformed(reference.to_string(), error))?;
        Ok(Registry {
            connections: Connections::new(transport),
            reference,
            loopback: is_loopback(&base),
            base,
            credential,
            authorization: None,
            actions,
            manifest_bytes_max,
        })
    }

    fn url(&self, path: &str) -> Result<Url, PullError> {
        let whole = format!("{}{}/{path}", self.base, self.reference.path());
        Url::parse(&whole).map_err(|error| PullError::malformed(whole, error))
    }

    /// One request to the registry, as whom it wants, and an answer that is no error.
    async fn call(
        &mut self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        payload: Payload,
    ) -> Result<(Url, Response<Incoming>), PullError> {
        let mut authorized = false;
        loop {
            let url = self.url(path)?;
            let mut all = headers.clone();
            if let Some(authorization) = &self.authorization {
                all.insert(AUTHORIZATION, authorization.clone());
            }
            let answer = match &payload {
                Payload::Empty if method == Method::GET || method == Method::HEAD => {
                    self.connections.follow(&method, &url, &all).await
                }
                payload => {
                    let sent = self.connections.request(&method, &url, &all, payload.clone()).await;
                    sent.map(|response| (url.clone(), response))
                }
            };
            let (url, response) = match answer {
                Ok(answer) => answer,
                // As Docker: a registry on this very machine may do without TLS.
                Err(failure) if failure.not_tls && self.loopback && self.base.scheme() == "https" => {
                    // cannot fail: both are schemes of the same kind
                    let _ = self.base.set_scheme("http");
                    continue;
                }
                Err(failure) => return Err(failure.error),
            };
            if response.status() == 401 && !authorized {
                authorized = true;
                if self.authorize(response.headers()).await? {
                    continue;
                }
            }
            if !response.status().is_success() {
                return Err(refusal(&method, &url, response).await);
            }
            return Ok((url, response));
        }
    }

    /// Becomes who the challenge asks for; false if it offers nothing that we can do.
    async fn authorize(&mut self, headers: &HeaderMap) -> Result<bool, PullError> {
        let challenges: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenges)
            .collect();
        let find = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme));
        if let Some(bearer) = find("bearer") {
            let token = self.token(bearer).await?;
            self.authorization = Some(secret(&format!("Bearer {token}"))?);
            return Ok(true);
        }
        match (find("basic"), self.credential) {
            (Some(_), Some(credential)) => {
                self.authorization = Some(basic(credential)?);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn token(&mut self, challenge: &Challenge) -> Result<String, PullError> {
        let realm = challenge.get("realm").unwrap_or_default();
        let mut url = Url::parse(realm)
            .map_err(|error| PullError::malformed(format!("the registry's token server {realm:?}"), error))?;
        let plain = url.scheme() == "http" && self.base.scheme() == "http" && is_loopback(&url);
        if url.scheme() != "https" && !plain {
            return Err(PullError::malformed(format!("the registry's token server {realm:?}"), "it is not https"));
        }
        let ours = format!("repository:{}:{}", self.reference.path(), self.actions);
        let scope = challenge.get("scope").unwrap_or(&ours);
        if let Some(service) = challenge.get("service") {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", scope);
        let mut headers = HeaderMap::new();
        if let Some(credential) = self.credential {
            headers.insert(AUTHORIZATION, basic(credential)?);
        }
        let (url, response) =
            self.connections.follow(&Method::GET, &url, &headers).await.map_err(|failure| failure.error)?;
        if !response.status().is_success() {
            let error = refusal(&Method::GET, &url, response).await;
            return Err(match error {
                PullError::Denied { .. } => error,
                error => PullError::Denied { detail: format!("failed to fetch a token: {error}") },
            });
        }
        let text = read_all("token", response, TOKEN_BYTES_MAX).await?;
        let token: Token = serde_json::from_slice(&text).map_err(|_| PullError::malformed("token", "invalid JSON"))?;
        token
            .token
            .or(token.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| PullError::malformed("token", "the answer has none"))
    }

    /// The digest that a name stands for now, if the registry tells.
    pub(super) async fn resolve(&mut self) -> Result<Option<String>, PullError> {
        let path = format!("manifests/{}", self.reference.wanted());
        let found = self.call(Method::HEAD, &path, accept(&MANIFESTS), Payload::Empty).await;
        match found {
            Ok((_, response)) => Ok(content_digest(response.headers())),
            Err(PullError::NotFound { .. }) => Err(PullError::NotFound { what: self.reference.to_string() }),
            // Not all registries know the method.
            Err(PullError::Status { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A manifest or index by tag or digest.
    pub(super) async fn manifest(&mut self, wanted: &str) -> Result<Fetched, PullError> {
        let path = format!("manifests/{wanted}");
        let (_, response) = match self.call(Method::GET, &path, accept(&MANIFESTS), Payload::Empty).await {
            Err(PullError::NotFound { .. }) => {
                let by_digest = wanted.starts_with("sha256:") && self.reference.digest() != Some(wanted);
                let what = if by_digest { wanted.to_owned() } else { self.reference.to_string() };
                return Err(PullError::NotFound { what });
            }
            answer => answer?,
        };
        let claimed = content_digest(response.headers());
        let text = read_all("manifest", response, self.manifest_bytes_max).await?;
        let digest = digest_of(&text);
        let expected = if wanted.starts_with("sha256:") { Some(wanted.to_owned()) } else { claimed };
        match expected {
            Some(expected) if expected.starts_with("sha256:") => {
                check("manifest", &expected, &digest)?;
            }
            _ => {}
        }
        Ok(Fetched { digest, text })
    }

    /// A small blob, whole.
    pub(super) async fn config(&mut self, blob: &Descriptor) -> Result<Bytes, PullError> {
        blob.hex()?;
        let response = self.blob_answer(blob, self.manifest_bytes_max).await?;
        let text = read_all("image config", response, self.manifest_bytes_max).await?;
        check("image config", &blob.digest, &digest_of(&text))?;
        Ok(text)
    }

    /// A blob into a file.
    pub(super) async fn blob(&mut self, blob: &Descriptor, file: &File, bytes_max: u64) -> Result<(), PullError> {
        let expected = blob.hex()?.to_owned();
        let response = self.blob_answer(blob, bytes_max).await?;
        let what = format!("layer {}", blob.digest);
        let found = save(&what, response, file, blob.size.min(bytes_max)).await?;
        check(&what, &format!("sha256:{expected}"), &format!("sha256:{found}"))
    }

    async fn blob_answer(&mut self, blob: &Descriptor, bytes_max: u64) -> Result<Response<Incoming>, PullError> {
        if blob.size > bytes_max {
            return Err(PullError::TooBig { what: format!("layer {}", blob.digest), bytes_max });
        }
        let path = format!("blobs/{}", blob.digest);
        match self.call(Method::GET, &path, HeaderMap::new(), Payload::Empty).await {
            Ok((_, response)) => Ok(response),
            Err(PullError::NotFound { .. }) => Err(PullError::NotFound { what: format!("layer {}", blob.digest) }),
            Err(error) => Err(error),
        }
    }

    /// Puts a blob there unless it is there.
    pub(super) async fn push_blob(&mut self, digest: &str, payload: Payload) -> Result<(), PullError> {
        let path = format!("blobs/{digest}");
        match self.call(Method::HEAD, &path, HeaderMap::new(), Payload::Empty).await {
            Ok(_) => return Ok(()),
            Err(PullError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let (url, response) = self.call(Method::POST, "blobs/uploads/", headers, Payload::Empty).await?;
        let mut to =
            location(&url, response.headers()).map_err(|detail| transport_error(&Method::POST, &url, detail))?;
        to.query_pairs_mut().append_pair("digest", digest);
        let mut headers = HeaderMap::new();
        header(&mut headers, CONTENT_TYPE, "application/octet-stream")?;
        let bytes = match &payload {
            Payload::Empty => 0,
            Payload::Bytes(bytes) => bytes.len() as u64,
            Payload::File { bytes, .. } => *bytes,
        };
        header(&mut headers, CONTENT_LENGTH, &bytes.to_string())?;
        if let Some(authorization) = self.authorization.as_ref().filter(|_| to.origin() == url.origin()) {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let sent = self.connections.request(&Method::PUT, &to, &headers, payload).await;
        let response = sent.map_err(|failure| failure.error)?;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(refusal(&Method::PUT, &to, response).await),
        }
    }

    /// Makes the reference's tag (or digest) stand for a manifest.
    pub(super) async fn push_manifest(&mut self, text: Bytes) -> Result<(), PullError> {
        let path = format!("manifests/{}", self.reference.wanted());
        let mut headers = HeaderMap::new();
        header(&mut headers, CONTENT_TYPE, OCI_MANIFEST)?;
        self.call(Method::PUT, &path, headers, Payload::Bytes(text)).await.map(|_| ())
    }
}

/// A body into a file; answers the bytes' SHA-256 in hexadecimal.
pub(super) async fn save(
    what: &str,
    mut response: Response<Incoming>,
    file: &File,
    bytes_max: u64,
) -> Result<String, PullError> {
    let too_big = || PullError::TooBig { what: what.to_owned(), bytes_max };
    let disk = || PullError::disk(format!("cannot write {what}"));
    if content_length(response.headers()).is_some_and(|bytes| bytes > bytes_max) {
        return Err(too_big());
    }
    let mut file = tokio::fs::File::from_std(file.try_clone().map_err(disk())?);
    let (mut hasher, mut written) = (Sha256::new(), 0);
    while let Some(piece) = next(response.body_mut()).await.map_err(|detail| PullError::malformed(what, detail))? {
        written += piece.len() as u64;
        if written > bytes_max {
            return Err(too_big());
        }
        hasher.update(&piece);
        file.write_all(&piece).await.map_err(disk())?;
    }
    file.flush().await.map_err(disk())?;
    Ok(hex(&hasher.finalize()))
}

/// The SHA-256 of a file's bytes against the one wanted.
pub(super) fn check(what: &str, expected: &str, found: &str) -> Result<(), PullError> {
    match expected == found {
        true => Ok(()),
        false => {
            let (expected, found) = (expected.to_owned(), found.to_owned());
            Err(PullError::Digest { what: what.to_owned(), expected, found })
        }
    }
}

/// The file behind an address into a file.
pub(super) async fn download(
    transport: &Arc<Transport>,
    url: &Url,
    file: &File,
    bytes_max: u64,
) -> Result<String, PullError> {
    let mut connections = Connections::new(transport);
    let answer = connections.follow(&Method::GET, url, &HeaderMap::new()).await;
    let (at, response) = answer.map_err(|failure| failure.error)?;
    match response.status().is_success() {
        true => save(url.as_str(), response, file, bytes_max).await,
        false => Err(refusal(&Method::GET, &at, response).await),
    }
}

fn content_digest(headers: &HeaderMap) -> Option<String> {
    headers.get("docker-content-digest")?.to_str().ok().map(str::to_owned)
}

fn accept(types: &[&'static str]) -> HeaderMap {
    types.iter().map(|kind| (ACCEPT, HeaderValue::from_static(kind))).collect()
}

fn basic(credential: &Credential) -> Result<HeaderValue, PullError> {
    secret(&format!("Basic {}", STANDARD.encode(format!("{}:{}", credential.username, credential.password))))
}

fn secret(text: &str) -> Result<HeaderValue, PullError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| PullError::malformed("token", "unusable characters"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Of the machine itself: `localhost`, `127.0.0.0/8`, `::1`.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => IpAddr::from(ip).is_loopback(),
        Some(url::Host::Ipv6(ip)) => IpAddr::from(ip).is_loopback(),
        None => false,
    }
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// One way in which a server wants to know who asks.
#[derive(Debug, PartialEq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// `Bearer realm="https://...",service="...", Basic realm="..."`
fn challenges(text: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let word_end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        let value = after.trim_start().strip_prefix('=').map(str::trim_start);
        match (value, found.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, after) = parameter(value);
                challenge.parameters.push((word.to_owned(), value));
                rest = after;
            }
            // A parameter of nothing.
            (Some(value), None) => rest = parameter(value).1,
            (None, _) => {
                found.push(Challenge { scheme: word.to_owned(), parameters: Vec::new() });
                rest = after;
            }
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    found
}

/// A value, quoted or not, and what follows.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                escaped = false;
                value.push(c);
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        for (text, want) in [
            ("Basic realm=\"Registry\"", "Basic[realm=Registry]"),
            (
                r#"Bearer realm="https://a.b/t?x=1,2",service="r \"x\"",scope="repository:a:pull,push", Basic realm=x"#,
                r#"Bearer[realm=https://a.b/t?x=1,2;service=r "x";scope=repository:a:pull,push] Basic[realm=x]"#,
            ),
            ("Negotiate", "Negotiate[]"),
            ("=x,,Basic  realm = \"open", "Basic[realm=open]"),
            ("", ""),
        ] {
            let got: Vec<String> = challenges(text)
                .iter()
                .map(|one| {
                    let pairs: Vec<String> = one.parameters.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    format!("{}[{}]", one.scheme, pairs.join(";"))
                })
                .collect();
            assert_eq!(got.join(" "), want, "{text}");
        }
    }
}
