//! Images of containers: whether one is here, and fetching it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use bollard::models::ImageInspect;
use bollard::query_parameters::{CreateImageOptions, ImportImageOptions};
use futures::future::{BoxFuture, FutureExt, Shared};
use futures::{StreamExt, TryFutureExt};
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use tokio_util::io::ReaderStream;

use super::Docker;
use super::error::{Cause, DockerError, PullError, cause, engine, found};
use super::spec::{ImageInfo, RegistryAuth};

/// Bytes of an image's name.
const NAME_BYTES_MAX: usize = 1024;

/// Bytes of an archive that are sent to the engine at once.
const LOAD_BYTES: usize = 256 << 10;

/// Pulls that are going on, by image and by who asks: one who may not have an image must not get it with another.
type Key = (String, Option<RegistryAuth>);
type Pulling = Shared<BoxFuture<'static, Result<ImageInfo, PullError>>>;
#[derive(Default)]
pub(super) struct Pulls(Mutex<HashMap<Key, Pulling>>);

/// When images were last used, by id, as far as this process knows.
#[derive(Default)]
pub(super) struct Uses(Mutex<HashMap<String, Timestamp>>);

impl Uses {
    pub(super) fn used(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), Timestamp::now());
    }

    /// All of them, after those that `keep` refuses are forgotten.
    pub(super) fn of(&self, keep: impl Fn(&str) -> bool) -> HashMap<String, Timestamp> {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.retain(|id, _| keep(id));
        uses.clone()
    }
}

impl Docker {
    /// The image of this name or id, if it is here. Counts as a use of it.
    pub async fn has_image(&self, image: &str) -> Result<Option<ImageInfo>, DockerError> {
        if !is_name(image) {
            return Err(DockerError::InvalidImage { image: image.to_owned() });
        }
        let client = self.0.connection.client()?;
        match found(client.inspect_image(image).await).map_err(cause) {
            Ok(None) => Ok(None),
            Ok(Some(inspected)) => {
                let image = info(inspected);
                self.0.uses.used(&image.id);
                Ok(Some(image))
            }
            Err(Cause::Refused(_, detail)) if detail.contains("invalid reference format") => {
                Err(DockerError::InvalidImage { image: image.to_owned() })
            }
            Err(Cause::Refused(_, detail)) => Err(DockerError::Engine { act: "inspect an image", detail }),
            Err(Cause::Lost(detail)) => Err(DockerError::Unreachable { detail }),
        }
    }

    /// Fetches an image from its registry, or learns that the newest is here. Who asks for what is being fetched waits
    /// with the others; a fetch goes on when all have left.
    pub async fn pull(&self, image: &str, auth: Option<RegistryAuth>) -> Result<ImageInfo, PullError> {
        let Some(name) = is_name(image).then(|| with_tag(image)) else {
            return Err(PullError::InvalidName { image: image.to_owned() });
        };
        let key: Key = (name, auth);
        let pulling = {
            let mut pulls = self.0.pulls.0.lock().unwrap_or_else(PoisonError::into_inner);
            match pulls.get(&key) {
                Some(pulling) => pulling.clone(),
                None => {
                    let (docker, own) = (self.clone(), key.clone());
                    let task = tokio::spawn(async move {
                        let pulled = docker.fetch(&own.0, own.1.as_ref()).await;
                        docker.0.pulls.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&own);
                        pulled
                    });
                    let lost = |error: tokio::task::JoinError| {
                        PullError::Docker(DockerError::Engine { act: "pull an image", detail: error.to_string() })
                    };
                    let pulling = task.map_err(lost).map(|done| done.and_then(|pulled| pulled)).boxed().shared();
                    pulls.insert(key, pulling.clone());
                    pulling
                }
            }
        };
        pulling.await
    }

    async fn fetch(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<ImageInfo, PullError> {
        let mut client = self.0.connection.client().map_err(PullError::Docker)?.clone();
        if let Some(value) = auth.and_then(header) {
            // bollard's own header is not base64 for URLs, and Docker takes what it cannot read for no credentials.
            let name = HeaderName::from_static("x-registry-auth");
            client = client.with_request_modifier(move |mut request| {
                request.headers_mut().insert(name.clone(), value.clone());
                request
            });
        }
        let options = CreateImageOptions { from_image: Some(image.to_owned()), ..Default::default() };
        let mut progress = client.create_image(Some(options), None, None);
        while let Some(step) = progress.next().await {
            match step.map_err(cause) {
                Ok(_) => {}
                Err(Cause::Refused(status, detail)) => return Err(refusal(image, status, detail)),
                Err(Cause::Lost(detail)) => return Err(PullError::Docker(DockerError::Unreachable { detail })),
            }
        }
        match self.has_image(image).await.map_err(PullError::Docker)? {
            Some(image) => Ok(image),
            None => {
                let detail = "it was pulled and is not there".to_owned();
                Err(PullError::Docker(DockerError::Engine { act: "pull an image", detail }))
            }
        }
    }

    /// Loads the one image of an archive (`docker save`), and answers what the engine has then under its name.
    pub async fn load(&self, archive: &Path, image: &str) -> Result<ImageInfo, PullError> {
        let failed = |detail: String| PullError::Registry { image: image.to_owned(), detail };
        let file = tokio::fs::File::open(archive).await.map_err(|error| failed(error.to_string()))?;
        let client = self.0.connection.client().map_err(PullError::Docker)?;
        let options = ImportImageOptions { quiet: true, ..Default::default() };
        let mut progress = client.import_image_stream(options, ReaderStream::with_capacity(file, LOAD_BYTES), None);
        while let Some(step) = progress.next().await {
            match step.map_err(cause) {
                Ok(_) => {}
                Err(Cause::Refused(_, detail)) => return Err(failed(detail)),
                Err(Cause::Lost(detail)) => return Err(PullError::Docker(DockerError::Unreachable { detail })),
            }
        }
        let loaded = self.has_image(image).await.map_err(PullError::Docker)?;
        loaded.ok_or_else(|| failed("it was loaded and is not there".into()))
    }

    /// What images' ids are known by, of whichever name.
    pub(super) async fn image_id(&self, name: &str) -> Result<Option<String>, DockerError> {
        let client = self.0.connection.client()?;
        let inspected = found(client.inspect_image(name).await).map_err(engine("inspect an image"))?;
        Ok(inspected.and_then(|image| image.id))
    }
}

/// Whether a text may stand in the path of a request. Docker looks closer.
fn is_name(image: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@".contains(&byte);
    let parts = || image.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    image.len() <= NAME_BYTES_MAX && image.bytes().all(plain) && parts()
}

/// Without a tag Docker would fetch them all; of tag and digest only the digest counts.
fn with_tag(image: &str) -> String {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let tag = name[start..].find(':').map(|colon| start + colon);
    match (tag, digest) {
        (Some(tag), Some(digest)) => format!("{}@{digest}", &name[..tag]),
        (None, Some(_)) | (Some(_), None) => image.to_owned(),
        (None, None) => format!("{image}:latest"),
    }
}

fn header(auth: &RegistryAuth) -> Option<HeaderValue> {
    let json = match &auth.identity_token {
        Some(token) => serde_json::json!({ "identitytoken": token, "serveraddress": auth.server }),
        None => serde_json::json!({
            "username": auth.username, "password": auth.password, "serveraddress": auth.server,
        }),
    };
    let mut value = HeaderValue::from_str(&base64::engine::general_purpose::URL_SAFE.encode(json.to_string())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Docker's refusal by its words: its status says little about a registry's.
fn refusal(image: &str, status: u16, detail: String) -> PullError {
    let image = image.to_owned();
    let words = detail.to_ascii_lowercase();
    let says = |texts: &[&str]| texts.iter().any(|text| words.contains(text));
    if says(&["no matching manifest", "cannot be used on this platform", "does not match the specified platform"]) {
        PullError::WrongPlatform { image, detail }
    } else if says(&["unauthorized", "authentication required", "no basic auth", "denied", "forbidden"]) {
        PullError::Unauthorized { image, detail }
    } else if says(&["invalid reference format"]) {
        PullError::InvalidName { image }
    } else if status == 404 || says(&["not found", "manifest unknown", "name unknown", "does not exist"]) {
        PullError::NotFound { image, detail }
    } else {
        PullError::Registry { image, detail }
    }
}

fn info(image: ImageInspect) -> ImageInfo {
    let config = image.config.unwrap_or_default();
    ImageInfo {
        id: image.id.unwrap_or_default(),
        tags: image.repo_tags.unwrap_or_default(),
        digests: image.repo_digests.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        command: config.cmd.unwrap_or_default(),
        stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()),
        size_bytes: image.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let digest = "sha256:0123";
        let cases = [
            ("busybox", "busybox:latest"),
            ("busybox:1", "busybox:1"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
            ("a@sha256:0123", "a@sha256:0123"),
            ("h:1/a:c@sha256:0123", "h:1/a@sha256:0123"),
        ];
        for (image, expected) in cases {
            assert!(is_name(image), "{image}");
            assert_eq!(with_tag(image), expected);
        }
        assert!(is_name(digest));
        for image in ["", "a b", "a?b", "../containers", "a//b", "a#b", "a%2e", "é"] {
            assert!(!is_name(image), "{image}");
        }
    }

    #[test]
    fn refusals() {
        let check = |status, detail: &str, expected: &str| {
            let told = format!("{:?}", refusal("i", status, detail.to_owned()));
            assert!(told.starts_with(expected), "{detail}: {told}");
        };
        check(404, "manifest for h/i:1 not found: manifest unknown: manifest unknown", "NotFound");
        check(404, "pull access denied for i, repository does not exist or may require 'docker login'", "Unauthorized");
        check(500, "Head \"https://h/v2/i/manifests/1\": no basic auth credentials", "Unauthorized");
        check(500, "no matching manifest for linux/arm64/v8 in the manifest list entries", "WrongPlatform");
        check(500, "Get \"https://h/v2/\": dial tcp: lookup h: no such host", "Registry");
        check(500, "Get \"https://h/v2/\": context deadline exceeded", "Registry");
        check(400, "invalid reference format: repository name must be lowercase", "InvalidName");
    }

    #[test]
    fn credentials_travel_whole() {
        let auth = RegistryAuth {
            username: "u".into(),
            password: "~~~???\u{ff}>>".into(),
            identity_token: None,
            server: "h:1".into(),
        };
        let value = header(&auth).unwrap();
        assert!(!value.to_str().unwrap().contains(['+', '/']));
        let bytes = base64::engine::general_purpose::URL_SAFE.decode(value.as_bytes()).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["password"], auth.password);
    }
}
