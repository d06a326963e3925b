//! What an image's name says: a file of this machine, an address with a checksum, or a place in a registry.
//!
//! A name is read as Docker reads it (`docker.io`, `library/` and `latest` where they are left out). Only sha256
//! digests exist here.

use std::fmt;
use std::path::PathBuf;

use url::Url;

use super::error::ImageError;

/// The registry of a name without a host.
pub(super) const DEFAULT_HOST: &str = "docker.io";
/// Longest name of a repository with its host, in bytes, as Docker has it.
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// What kind of place an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// `file:///abs/app.wasm`, or `file://rel/app.wasm`, a path seen from the process's working directory. Whether the
    /// file exists shows when it is loaded.
    File(PathBuf),
    /// `https://host/app.wasm@sha256:...`
    Https(HttpsImage),
    /// `[host[:port]/]path[:tag][@sha256:...]`
    Registry(Reference),
}

/// A file behind an address, with the checksum that it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpsImage {
    /// Without the checksum.
    pub(super) url: Url,
    /// 64 hexadecimal digits.
    pub(super) sha256: String,
}

impl fmt::Display for HttpsImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@sha256:{}", self.url, self.sha256)
    }
}

/// A place in a registry, complete: `docker.io/library/nginx:latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// The registry: `docker.io`, `localhost:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository in the registry: `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; none only if there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `sha256:...`; it counts more than the tag.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The repository with its registry: `docker.io/library/nginx`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// As people write it: without what Docker adds by itself.
    pub fn familiar_repository(&self) -> String {
        match self.host.as_str() {
            DEFAULT_HOST => self.path.strip_prefix("library/").unwrap_or(&self.path).to_owned(),
            _ => self.repository(),
        }
    }

    /// What a registry is asked for: the digest, or else the tag.
    pub(super) fn wanted(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    /// Where the registry answers: `docker.io` is only its name.
    pub(super) fn api_host(&self) -> &str {
        match self.host.as_str() {
            DEFAULT_HOST => "registry-1.docker.io",
            host => host,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// Reads an image's name; the error's reason is `InvalidImageName`.
pub fn parse(image: &str) -> Result<Parsed, ImageError> {
    let invalid = |detail: &str| ImageError::InvalidName { image: image.to_owned(), detail: detail.to_owned() };
    if image.is_empty() || image.trim() != image || image.contains(|c: char| c.is_control()) {
        return Err(invalid("invalid reference format"));
    }
    let Some((scheme, rest)) = image.split_once("://") else {
        return reference(image).map(Parsed::Registry).map_err(invalid);
    };
    match scheme {
        "file" if rest.is_empty() || rest.ends_with('/') => Err(invalid("file:// names no file")),
        "file" if !rest.ends_with(".wasm") => Err(invalid("a file:// image must end in .wasm")),
        "file" => Ok(Parsed::File(PathBuf::from(rest))),
        "https" => https(image).map(Parsed::Https).map_err(|detail| invalid(&detail)),
        _ => Err(invalid(&format!("unknown scheme {scheme:?}"))),
    }
}

fn https(image: &str) -> Result<HttpsImage, String> {
    let Some((address, sha256)) = image.rsplit_once("@sha256:") else {
        return Err("an https:// image needs its checksum: https://host/app.wasm@sha256:...".into());
    };
    check_hex(sha256)?;
    let url = Url::parse(address).map_err(|error| error.to_string())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an https:// image must not name a user".into());
    }
    if url.fragment().is_some() {
        return Err("an https:// image must not have a fragment".into());
    }
    if !url.path().ends_with(".wasm") {
        return Err("the path of an https:// image must end in .wasm".into());
    }
    Ok(HttpsImage { url, sha256: sha256.to_owned() })
}

fn check_hex(hex: &str) -> Result<(), &'static str> {
    match hex {
        _ if hex.len() != 64 => Err("invalid checksum digest length"),
        _ if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => Err("invalid checksum digest format"),
        _ => Ok(()),
    }
}

fn reference(image: &str) -> Result<Reference, &'static str> {
    const FORMAT: &str = "invalid reference format";
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    if let Some(digest) = digest {
        let (algorithm, hex) = digest.split_once(':').ok_or(FORMAT)?;
        if algorithm != "sha256" {
            return Err("unsupported digest algorithm");
        }
        check_hex(hex)?;
    }
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    if name.len() == 64 && check_hex(name).is_ok() {
        return Err("invalid repository name, cannot specify 64-byte hexadecimal strings");
    }
    let is_host = |host: &str| {
        host.contains(['.', ':']) || host == "localhost" || host.bytes().any(|byte| byte.is_ascii_uppercase())
    };
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if is_host(host) => (host, path.to_owned()),
        _ => (DEFAULT_HOST, name.to_owned()),
    };
    let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
    let path = if host == DEFAULT_HOST && !path.contains('/') { format!("library/{path}") } else { path };
    if !check_host(host) || !path.split('/').all(check_component) || !tag.is_none_or(check_tag) {
        let lower = path.to_ascii_lowercase();
        let cased = lower != path && lower.split('/').all(check_component);
        return Err(if cased { "invalid reference format: repository name must be lowercase" } else { FORMAT });
    }
    if host.len() + 1 + path.len() > NAME_BYTES_MAX {
        return Err("repository name must not be more than 255 characters");
    }
    let tag = match (tag, digest) {
        (None, None) => Some("latest"),
        (tag, _) => tag,
    };
    Ok(Reference { host: host.to_owned(), path, tag: tag.map(Into::into), digest: digest.map(Into::into) })
}

/// `name[:port]`, or an IPv6 address in brackets.
fn check_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let ipv6 = |name: &str| {
        let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
    };
    (ipv6(name) || name.split('.').all(label)) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Lower-case letters and digits, with `.`, `_`, `__` or dashes between them.
fn check_component(component: &str) -> bool {
    let inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    let separator = |run: &str| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|byte| byte == b'-');
    component.bytes().next().is_some_and(inner)
        && component.bytes().next_back().is_some_and(inner)
        && component.is_ascii()
        && component.split(|c: char| inner(c as u8)).all(separator)
}

fn check_tag(tag: &str) -> bool {
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= TAG_BYTES_MAX && tag.starts_with(first) && tag.chars().all(|c| first(c) || matches!(c, '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(image: &str) -> String {
        match parse(image) {
            Ok(Parsed::File(path)) => format!("file {}", path.display()),
            Ok(Parsed::Https(https)) => format!("https {https}"),
            Ok(Parsed::Registry(reference)) => reference.to_string(),
            Err(ImageError::InvalidName { detail, .. }) => format!("no: {detail}"),
            Err(error) => format!("{}: {error}", error.reason()),
        }
    }

    #[test]
    fn references() {
        const FORMAT: &str = "no: invalid reference format";
        for (image, want) in [
            ("file:///srv/app.wasm", "file /srv/app.wasm"),
            ("file://examples/hello/hello.wasm", "file examples/hello/hello.wasm"),
            ("file://", "no: file:// names no file"),
            ("file:///etc/passwd", "no: a file:// image must end in .wasm"),
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("user/app", "docker.io/user/app:latest"),
            ("index.docker.io/app", "docker.io/library/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("127.0.0.1:5000/a/b__c/d-e.f:v1.0_x", "127.0.0.1:5000/a/b__c/d-e.f:v1.0_x"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("a@sha256:0123456789abcdef0123456789abcdef", "no: invalid checksum digest length"),
            ("a@sha512:00", "no: unsupported digest algorithm"),
            ("Nginx:", "no: invalid reference format: repository name must be lowercase"),
            ("Nginx", "no: invalid reference format: repository name must be lowercase"),
            ("nginx:", FORMAT),
            ("", FORMAT),
            (" a", FORMAT),
            ("a//b", FORMAT),
            ("a..b", FORMAT),
            ("../b", FORMAT),
            ("a/../../b", FORMAT),
            ("é", FORMAT),
            ("registry.local:99999/a", FORMAT),
            ("ftp://x/y.wasm", "no: unknown scheme \"ftp\""),
            (
                "https://example.com/app.wasm",
                "no: an https:// image needs its checksum: https://host/app.wasm@sha256:...",
            ),
        ] {
            assert_eq!(read(image), want, "{image}");
        }
    }

    #[test]
    fn references_with_digests() {
        let hex = "0123456789abcdef".repeat(4);
        for (image, want) in [
            ("r.local:5000/a/b@sha256:HEX", "r.local:5000/a/b@sha256:HEX"),
            ("ghcr.io/a/b:v1@sha256:HEX", "ghcr.io/a/b:v1@sha256:HEX"),
            ("HEX", "no: invalid repository name, cannot specify 64-byte hexadecimal strings"),
            ("https://a.b/c/app.wasm?x=1@sha256:HEX", "https https://a.b/c/app.wasm?x=1@sha256:HEX"),
            ("https://u:p@a.b/app.wasm@sha256:HEX", "no: an https:// image must not name a user"),
            ("https://a.b/app.wasm#x@sha256:HEX", "no: an https:// image must not have a fragment"),
            ("https://a.b/app@sha256:HEX", "no: the path of an https:// image must end in .wasm"),
        ] {
            assert_eq!(read(&image.replace("HEX", &hex)), want.replace("HEX", &hex), "{image}");
        }
        let error = parse("a:").unwrap_err();
        assert_eq!(error.reason(), "InvalidImageName");
        let want =
            "Failed to apply default image tag \"a:\": couldn't parse image name \"a:\": invalid reference format";
        assert_eq!(error.to_string(), want);
    }
}
