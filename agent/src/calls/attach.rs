//! Attach: the streams of a running container itself.

use super::{find_pod, full_name, live, session};
use crate::body::Body;
use crate::container::chain;
use runtime::ExecError;
use sync::{Attach, CallError, Input, OutputStream};
use tokio::sync::mpsc;

/// Joins what the container says from now on.
pub async fn open(body: &Body, wanted: Attach, input: mpsc::Receiver<Input>) -> Result<OutputStream, CallError> {
    let pod = find_pod(body, &wanted.namespace, &wanted.pod, &wanted.uid)?;
    let not_found =
        || CallError::NotFound(format!("container {} not found in pod {}", wanted.container, full_name(&pod)));
    let found = live(body, &pod, &wanted.container).ok_or_else(not_found)?;
    if wanted.tty && !found.tty {
        return Err(CallError::BadRequest(format!(
            "unable to use a TTY - container {} did not allocate one",
            wanted.container
        )));
    }
    let session = found.guest.attach(wanted.stdin).await.map_err(|error| match error {
        ExecError::NotRunning { .. } => not_found(),
        error => CallError::Failed(format!("error attaching to container: {}", chain(&error))),
    })?;
    Ok(session::join(
        session,
        input,
        session::Wanted { stdin: wanted.stdin, stdout: wanted.stdout, stderr: wanted.stderr },
    ))
}
