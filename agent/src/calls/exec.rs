//! Exec: a further command in a running container.

use super::{find_pod, live, session};
use crate::body::Body;
use crate::container::chain;
use runtime::{ExecError, ExecOptions};
use sync::{CallError, Exec, Input, OutputStream};
use tokio::sync::mpsc;

/// Starts the command.
pub async fn open(body: &Body, wanted: Exec, input: mpsc::Receiver<Input>) -> Result<OutputStream, CallError> {
    if wanted.command.is_empty() {
        return Err(CallError::BadRequest("you must specify at least 1 command for the container".into()));
    }
    let pod = find_pod(body, &wanted.namespace, &wanted.pod, &wanted.uid)?;
    let not_found = || CallError::NotFound(format!("container not found ({:?})", wanted.container));
    let found = live(body, &pod, &wanted.container).ok_or_else(not_found)?;
    let options = ExecOptions { argv: wanted.command, stdin: wanted.stdin, tty: wanted.tty };
    let session = found.guest.exec(options).await.map_err(|error| match error {
        ExecError::NotRunning { .. } => not_found(),
        error => CallError::Failed(format!("error executing command in container: {}", chain(&error))),
    })?;
    Ok(session::join(
        session,
        input,
        session::Wanted { stdin: wanted.stdin, stdout: wanted.stdout, stderr: wanted.stderr },
    ))
}
