//! The last word about a program, as the error stream carries it.

use crate::nodes::CallError;
use crate::status::Status;
use serde_json::{Value, json};

/// What became of a program or of the attempt to run it.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It ended well, or its streams did.
    Success,
    /// It ended with another exit code.
    Exit(i32),
    /// It could not be run to its end; for people.
    Failure(String),
}

impl Outcome {
    /// A failure of `what` ("executing command in container").
    pub fn failed(what: &str, error: &CallError) -> Self {
        Self::Failure(format!("error {what}: {error}"))
    }

    /// For the versions that tell everything as a `Status`.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": Self::exit_text(*code),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failure(message) => Status::internal(message).to_value(),
        }
    }

    /// For the older ones, which tell failures in words and nothing of success.
    pub fn to_text(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::Exit(code) => Self::exit_text(*code),
            Self::Failure(message) => Status::internal(message).message,
        }
    }

    fn exit_text(code: i32) -> String {
        format!("command terminated with non-zero exit code: exit status {code}")
    }
}
