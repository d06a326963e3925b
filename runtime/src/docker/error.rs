//! How acts on Docker fail, in Kubernetes' reasons and Docker's own words.

use std::fmt::Write as _;

use bollard::errors::Error as EngineError;

/// Why Docker did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerError {
    /// No engine answers. Retrying helps once [`super::Health`] is ready again.
    #[error("cannot reach Docker: {detail}")]
    Unreachable {
        /// Why.
        detail: String,
    },
    /// The engine or the machine cannot do what is needed here.
    #[error("{detail}")]
    Unsupported {
        /// What is lacking.
        detail: String,
    },
    /// The node's bridge network could not be made.
    #[error("cannot make the pod network {network}: {detail}")]
    Network {
        /// Its name in Docker.
        network: String,
        /// Why.
        detail: String,
    },
    /// The pod's sandbox could not be made.
    #[error("failed to create the sandbox of pod {pod}: {detail}")]
    Sandbox {
        /// `namespace/name`.
        pod: String,
        /// Why.
        detail: String,
    },
    /// The container's specification cannot be turned into a container of this image.
    #[error("{detail}")]
    Config {
        /// Why, in the kubelet's words.
        detail: String,
    },
    /// Not the name of an image.
    #[error("couldn't parse image name {image:?}: invalid reference format")]
    InvalidImage {
        /// The name.
        image: String,
    },
    /// Docker refused to create the container.
    #[error("failed to create container: {detail}")]
    Create {
        /// Docker's words.
        detail: String,
    },
    /// The container was created and could not be started; it has been removed again.
    #[error("failed to start container: {detail}")]
    Run {
        /// Docker's words.
        detail: String,
    },
    /// No such container.
    #[error("no such container: {id}")]
    NotFound {
        /// Its id.
        id: String,
    },
    /// Docker failed at something else.
    #[error("Docker cannot {act}: {detail}")]
    Engine {
        /// What was being done.
        act: &'static str,
        /// Docker's words.
        detail: String,
    },
}

impl DockerError {
    /// Kubernetes' reason for a container (or its pod's sandbox) that waits because of this.
    pub fn reason(&self) -> &'static str {
        match self {
            DockerError::Network { .. } | DockerError::Sandbox { .. } => "FailedCreatePodSandBox",
            DockerError::Config { .. } => "CreateContainerConfigError",
            DockerError::InvalidImage { .. } => "InvalidImageName",
            DockerError::Run { .. } => "RunContainerError",
            DockerError::Unreachable { .. }
            | DockerError::Unsupported { .. }
            | DockerError::Create { .. }
            | DockerError::NotFound { .. }
            | DockerError::Engine { .. } => "CreateContainerError",
        }
    }

    pub(super) fn unreachable(detail: impl ToString) -> DockerError {
        DockerError::Unreachable { detail: detail.to_string() }
    }
}

/// Why an image was not pulled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// Not the name of an image.
    #[error("couldn't parse image name {image:?}: invalid reference format")]
    InvalidName {
        /// The name.
        image: String,
    },
    /// The registry has no such image, or says so to strangers.
    #[error("failed to pull image {image:?}: {detail}")]
    NotFound {
        /// The image.
        image: String,
        /// Docker's words.
        detail: String,
    },
    /// The registry wants other credentials.
    #[error("failed to pull image {image:?}: {detail}")]
    Unauthorized {
        /// The image.
        image: String,
        /// Docker's words.
        detail: String,
    },
    /// The registry has the image for other machines only.
    #[error("failed to pull image {image:?}: {detail}")]
    WrongPlatform {
        /// The image.
        image: String,
        /// Docker's words.
        detail: String,
    },
    /// The registry could not be reached, or broke off.
    #[error("failed to pull image {image:?}: {detail}")]
    Registry {
        /// The image.
        image: String,
        /// Docker's words.
        detail: String,
    },
    /// Docker itself failed.
    #[error(transparent)]
    Docker(DockerError),
}

impl PullError {
    /// Kubernetes' reason.
    pub fn reason(&self) -> &'static str {
        match self {
            PullError::InvalidName { .. } => "InvalidImageName",
            _ => "ErrImagePull",
        }
    }
}

/// What an engine's error is about, for those who act on it.
pub(super) enum Cause {
    /// The engine answered with this HTTP status and these words.
    Refused(u16, String),
    /// There was no whole answer.
    Lost(String),
}

pub(super) fn cause(error: EngineError) -> Cause {
    match error {
        EngineError::DockerResponseServerError { status_code, message } => {
            Cause::Refused(status_code, message.trim().to_owned())
        }
        EngineError::DockerStreamError { error } => Cause::Refused(500, error.trim().to_owned()),
        other => Cause::Lost(chain(&other)),
    }
}

/// An engine's error as that of `act`.
pub(super) fn engine(act: &'static str) -> impl Fn(EngineError) -> DockerError {
    move |error| match cause(error) {
        Cause::Refused(_, detail) => DockerError::Engine { act, detail },
        Cause::Lost(detail) => DockerError::Unreachable { detail },
    }
}

/// As [`engine`], with `refused` for what the engine answered.
pub(super) fn refused(refused: impl Fn(String) -> DockerError) -> impl Fn(EngineError) -> DockerError {
    move |error| match cause(error) {
        Cause::Refused(_, detail) => refused(detail),
        Cause::Lost(detail) => DockerError::Unreachable { detail },
    }
}

/// `None` where the engine says that there is no such thing.
pub(super) fn found<T>(result: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An error with its causes, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        next = cause.source();
    }
    text
}
