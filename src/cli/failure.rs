//! What went wrong, in kubectl's words, and the exit code that goes with it.

use serde_json::Value;

/// A `Status` as an API server answers it.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Kubernetes' machine-readable reason, such as `NotFound`; empty if the server gave none.
    pub reason: String,
    /// The server's sentence.
    pub message: String,
    /// `details`: kind, name, causes; null if absent.
    pub details: Value,
}

/// Why a verb could not do all it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// A sentence of our own; printed after `error: `.
    #[error("{0}")]
    Text(String),
    /// A sentence of our own that is printed as it stands.
    #[error("{0}")]
    Bare(String),
    /// The server refused.
    #[error("{}", .0.message)]
    Refused(Box<Status>),
    /// Nobody answered.
    #[error("{message}")]
    Unreachable {
        /// The whole sentence.
        message: String,
    },
    /// Several things went wrong; each is printed on its own line.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Failure>),
    /// A remote program ended with this exit code, which becomes ours.
    #[error("command terminated with exit code {0}")]
    Terminated(i32),
    /// All that had to be said was said; only the exit code remains.
    #[error("exit code {0}")]
    Exit(u8),
}

/// The result of a verb or of one of its steps.
pub type Result<T> = std::result::Result<T, Failure>;

/// A failure with a sentence of our own.
pub fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(Failure::Text(message.into()))
}

/// A usage error: kubectl's two lines.
pub fn usage<T>(verb: &str, message: impl AsRef<str>) -> Result<T> {
    Err(Failure::Bare(format!("error: {}\nSee 'coracle {verb} -h' for help and examples", message.as_ref())))
}

/// No failures is success, one stays itself, more become several.
pub fn all_of(mut failures: Vec<Failure>) -> Result<()> {
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        _ => Err(Failure::Several(failures)),
    }
}

impl Failure {
    /// Whether the server said that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        self.has_reason("NotFound")
    }

    /// Whether the object changed since it was read.
    pub fn is_conflict(&self) -> bool {
        self.has_reason("Conflict")
    }

    /// Whether the server gave this reason.
    pub fn has_reason(&self, reason: &str) -> bool {
        matches!(self, Failure::Refused(status) if status.reason == reason)
    }

    /// Says in which file the object stood, as kubectl does: `error when creating "web.yaml": ...`.
    pub fn when(self, act: &str, file: &str) -> Failure {
        match self {
            Failure::Refused(mut status) => {
                status.message = format!("error when {act} {file:?}: {}", status.message);
                Failure::Refused(status)
            }
            Failure::Text(message) => Failure::Text(format!("error when {act} {file:?}: {message}")),
            other => other,
        }
    }

    /// Adds a line that says where in a file the trouble lies.
    pub fn located(self, place: &str) -> Failure {
        let message = self.message();
        if message.is_empty() { self } else { Failure::Bare(format!("{message}\n  at {place}")) }
    }

    /// The exit code of a process that ends with this failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Exit(code) => *code,
            // The system keeps the lowest eight bits of an exit code; a failure must not look like success.
            Failure::Terminated(code) => code.to_le_bytes()[0].max(u8::from(*code != 0)),
            _ => 1,
        }
    }

    /// What is printed on stderr, without the last newline; empty if nothing is.
    pub fn message(&self) -> String {
        match self {
            Failure::Text(message) if message.starts_with("error: ") => message.clone(),
            Failure::Text(message) => format!("error: {message}"),
            Failure::Bare(message) | Failure::Unreachable { message } => message.clone(),
            Failure::Refused(status) if status.reason == "Invalid" => invalid(status),
            Failure::Refused(status) if status.reason == "Unauthorized" => {
                format!("error: You must be logged in to the server ({})", status.message)
            }
            Failure::Refused(status) if status.reason.is_empty() => format!("Error from server: {}", status.message),
            Failure::Refused(status) => format!("Error from server ({}): {}", status.reason, status.message),
            Failure::Several(all) => {
                all.iter().map(Failure::message).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
            }
            Failure::Terminated(_) => self.to_string(),
            Failure::Exit(_) => String::new(),
        }
    }
}

/// `The Deployment "web" is invalid: spec.replicas: Invalid value: ...`, or a list when there are several causes.
fn invalid(status: &Status) -> String {
    let text = |key: &str| status.details[key].as_str().unwrap_or_default();
    let (kind, name) = (text("kind"), text("name"));
    let causes: Vec<&Value> = status.details["causes"].as_array().map(|c| c.iter().collect()).unwrap_or_default();
    let subject = if !kind.is_empty() || !name.is_empty() {
        format!("The {kind} {name:?} is invalid")
    } else if causes.is_empty() && !status.message.is_empty() {
        format!("The request is invalid: {}", status.message)
    } else {
        "The request is invalid".to_string()
    };
    let mut lines: Vec<String> = Vec::new();
    for cause in causes {
        let line = format!(
            "{}: {}",
            cause["field"].as_str().unwrap_or_default(),
            cause["message"].as_str().unwrap_or_default()
        );
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    match lines.as_slice() {
        [] => subject,
        [line] => format!("{subject}: {line}"),
        _ => {
            let list: String = lines.iter().map(|line| format!("\n* {line}")).collect();
            format!("{subject}: {list}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(reason: &str, details: Value) -> Failure {
        Failure::Refused(Box::new(Status { reason: reason.into(), message: "pods \"x\" not found".into(), details }))
    }

    #[test]
    fn kubectl_says_it_so() {
        let one = json!({"kind": "Deployment", "name": "web", "causes": [{"field": "spec.replicas", "message": "Invalid value: -1"}]});
        let two = json!({"kind": "Pod", "name": "x", "causes": [{"field": "a", "message": "b"}, {"field": "c", "message": "d"}]});
        for (failure, expected) in [
            (refused("NotFound", Value::Null), "Error from server (NotFound): pods \"x\" not found"),
            (refused("", Value::Null), "Error from server: pods \"x\" not found"),
            (
                refused("NotFound", Value::Null).when("creating", "a.yaml"),
                "Error from server (NotFound): error when creating \"a.yaml\": pods \"x\" not found",
            ),
            (refused("Invalid", one), "The Deployment \"web\" is invalid: spec.replicas: Invalid value: -1"),
            (refused("Invalid", two), "The Pod \"x\" is invalid: \n* a: b\n* c: d"),
            (Failure::Text("no".into()), "error: no"),
        ] {
            assert_eq!(failure.message(), expected);
        }
    }
}
