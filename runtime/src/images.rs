//! Image references, as far as they are resolved on the node itself: `file://`.
//!
//! Registries are deliberately absent: such a reference is a job for another runtime and refused here in the words the
//! kubelet uses, so that it shows up as `ErrImagePull` with its reason.

use std::path::PathBuf;

/// Why an image cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Reason `InvalidImageName`: no retry will help.
    #[error("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {detail}")]
    InvalidName {
        /// As written in the pod.
        image: String,
        /// Why.
        detail: String,
    },
    /// Reason `ErrImagePull`, then `ImagePullBackOff`.
    #[error("failed to pull image {image:?}: {detail}")]
    Pull {
        /// As written in the pod.
        image: String,
        /// Why.
        detail: String,
    },
}

impl ImageError {
    /// `state.waiting.reason` in Kubernetes' words.
    pub fn reason(&self) -> &'static str {
        match self {
            ImageError::InvalidName { .. } => "InvalidImageName",
            ImageError::Pull { .. } => "ErrImagePull",
        }
    }
}

/// The file an image reference stands for: `file:///abs/app.wasm`, or `file://rel/app.wasm`, a path seen from the
/// process's working directory. Whether the file exists shows when it is loaded.
pub fn resolve(image: &str) -> Result<PathBuf, ImageError> {
    let invalid = |detail: &str| ImageError::InvalidName { image: image.to_owned(), detail: detail.to_owned() };
    let pull = |detail: &str| ImageError::Pull { image: image.to_owned(), detail: detail.to_owned() };
    if image.is_empty() || image.trim() != image || image.contains(['\0', '\n']) {
        return Err(invalid("invalid reference format"));
    }
    let Some((scheme, rest)) = image.split_once("://") else {
        if !is_reference(image) {
            return Err(invalid("invalid reference format"));
        }
        return Err(pull(
            "it comes from a registry, which needs a container runtime such as docker; this node has none",
        ));
    };
    match scheme {
        "file" if rest.is_empty() || rest.ends_with('/') => Err(invalid("file:// names no file")),
        "file" if !rest.ends_with(".wasm") => Err(invalid("a file:// image must end in .wasm")),
        "file" => Ok(PathBuf::from(rest)),
        "https" => Err(pull("https:// images are not supported yet; use file://")),
        _ => Err(invalid(&format!("unknown scheme {scheme:?}"))),
    }
}

/// `[host[:port]/]path[:tag][@digest]`, near enough to tell a typo from a registry's image.
fn is_reference(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let word = |text: &str, extra: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric() || (c == '_' && extra.contains('_')))
            && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    let mut parts = path.split('/').peekable();
    let host = path.contains('/') && parts.peek().is_some_and(|host| host.contains(['.', ':']));
    let host = if host { parts.next() } else { None };
    host.is_none_or(|host| word(host, ".-:"))
        && parts.all(|part| word(part, "._-") && !part.chars().any(|c| c.is_ascii_uppercase()))
        && tag.is_none_or(|tag| word(tag, "._-") && tag.len() <= 128)
        && digest.is_none_or(|digest| {
            digest.split_once(':').is_some_and(|(kind, hex)| word(kind, "+._-") && hex.len() >= 32)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(image: &str, want: Expect) {
        let got = match resolve(image) {
            Ok(path) => path.display().to_string(),
            Err(error) => format!("{}: {error}", error.reason()),
        };
        want.assert_eq(&got);
    }

    #[test]
    fn references() {
        check("file:///srv/app.wasm", expect!["/srv/app.wasm"]);
        check("file://examples/hello/hello.wasm", expect!["examples/hello/hello.wasm"]);
        check(
            "file://",
            expect![[
                r#"InvalidImageName: Failed to apply default image tag "file://": couldn't parse image name "file://": file:// names no file"#
            ]],
        );
        check(
            "file:///etc/passwd",
            expect![[
                r#"InvalidImageName: Failed to apply default image tag "file:///etc/passwd": couldn't parse image name "file:///etc/passwd": a file:// image must end in .wasm"#
            ]],
        );
        check(
            "nginx:1.27",
            expect![[
                r#"ErrImagePull: failed to pull image "nginx:1.27": it comes from a registry, which needs a container runtime such as docker; this node has none"#
            ]],
        );
        check(
            "registry.local:5000/a/b@sha256:0123456789abcdef0123456789abcdef",
            expect![[
                r#"ErrImagePull: failed to pull image "registry.local:5000/a/b@sha256:0123456789abcdef0123456789abcdef": it comes from a registry, which needs a container runtime such as docker; this node has none"#
            ]],
        );
        check(
            "Nginx:",
            expect![[
                r#"InvalidImageName: Failed to apply default image tag "Nginx:": couldn't parse image name "Nginx:": invalid reference format"#
            ]],
        );
        check(
            "",
            expect![[
                r#"InvalidImageName: Failed to apply default image tag "": couldn't parse image name "": invalid reference format"#
            ]],
        );
        check(
            "ftp://x/y.wasm",
            expect![[
                r#"InvalidImageName: Failed to apply default image tag "ftp://x/y.wasm": couldn't parse image name "ftp://x/y.wasm": unknown scheme "ftp""#
            ]],
        );
    }
}
