//! The way into the store, and what its refusals mean to a client.

use crate::front::Call;
use crate::status::{MODIFIED, Status};
use state::{Event, Write};
use store::CommitError;

/// Commits one write.
///
/// # Errors
/// 409 or 404 when the precondition does not hold, 413 and 500 when the disk does not take it.
pub(crate) async fn commit(call: &Call, write: Write) -> Result<Event, Status> {
    let mut events = commit_all(call, vec![write]).await?;
    events.pop().ok_or_else(|| Status::internal("a commit made no event"))
}

/// Commits writes, all or none.
///
/// # Errors
/// As [`commit`].
pub(crate) async fn commit_all(call: &Call, writes: Vec<Write>) -> Result<Vec<Event>, Status> {
    let resource = call.resource();
    let name = writes.first().map(|write| write.key.name.to_string()).unwrap_or_default();
    call.api.store().commit(writes).await.map_err(|error| match error {
        CommitError::Absent { key } => Status::not_found(&key.resource, &key.name),
        CommitError::Exists { key } => Status::already_exists(&key.resource, &key.name),
        CommitError::Conflict { key, .. } => Status::conflict(&key.resource, &key.name, MODIFIED),
        CommitError::Uid { key, .. } => {
            Status::conflict(&key.resource, &key.name, "the UID in the precondition is another")
        }
        CommitError::TooLarge { .. } => {
            Status::new(413, "RequestEntityTooLarge", format!("{resource} {name:?} is too large to be stored"))
        }
        CommitError::Closed => Status::unavailable("the server is shutting down"),
        error => Status::internal(error),
    })
}
