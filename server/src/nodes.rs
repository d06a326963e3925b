//! The nodes that are linked to this master: each gets its slice of the events, and is reachable for calls.
//!
//! A link is served the same whoever carries it; today the only one is in memory, to the agent of this process.

use api::{LogStreamKind, LogsOptions, Nodes};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Pod;
use state::Object;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use store::{CommitError, Store, WatchError};
use sync::{Call, CallError, Caller, Down, IncomingWrites, MasterEnd, NodeEnd, Output, Rejected, slice};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Batches of one node's writes that are being committed at once.
const COMMITS_IN_FLIGHT_MAX: usize = 256;

/// The linked nodes. Clones share them.
#[derive(Clone)]
pub struct Links {
    store: Store,
    callers: Arc<Mutex<HashMap<String, Caller>>>,
    shutdown: CancellationToken,
}

impl Links {
    /// No links yet.
    pub fn new(store: Store, shutdown: CancellationToken) -> Self {
        Self { store, callers: Arc::default(), shutdown }
    }

    /// Links the agent of this process.
    pub fn attach_local(&self, node: &str) -> NodeEnd {
        let (master, end) = sync::local(sync::Limits::default());
        let MasterEnd { down, up, caller } = master;
        self.callers.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned(), caller);
        let (store, shutdown, node) = (self.store.clone(), self.shutdown.clone(), node.to_owned());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = feed(&store, &node, &down) => {}
            }
        });
        // writes are taken until the agent hangs up: it reports its last states while the process shuts down
        tokio::spawn(take_writes(self.store.clone(), up));
        end
    }

    fn caller(&self, node: &str) -> Option<Caller> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned()
    }
}

/// Sends a node its slice, then what changes in it; starts over when the node was too slow for the history.
async fn feed(store: &Store, node: &str, down: &mpsc::Sender<Down>) {
    loop {
        let world = store.world();
        let Ok(mut watch) = store.watch(world.revision()) else { continue };
        let reset = Down::Reset { revision: world.revision(), objects: slice::objects(&world, node) };
        if down.send(reset).await.is_err() {
            return;
        }
        drop(world);
        loop {
            match watch.next().await {
                Ok(event) => {
                    for event in slice::events(&event, &store.world(), node) {
                        if down.send(Down::Event(event)).await.is_err() {
                            return;
                        }
                    }
                }
                Err(WatchError::Expired { .. }) => break,
                Err(WatchError::Closed) => return,
            }
        }
    }
}

async fn take_writes(store: Store, mut up: mpsc::Receiver<IncomingWrites>) {
    let mut commits = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = commits.next() => {}
            batch = up.recv(), if commits.len() < COMMITS_IN_FLIGHT_MAX => match batch {
                Some(mut batch) => {
                    let store = store.clone();
                    let writes = std::mem::take(&mut batch.writes);
                    commits.push(async move {
                        batch.answer(store.commit(writes).await.map_err(rejected));
                    });
                }
                None => break,
            },
        }
    }
    while commits.next().await.is_some() {}
}

fn rejected(error: CommitError) -> Rejected {
    match error {
        CommitError::Absent { .. }
        | CommitError::Exists { .. }
        | CommitError::Conflict { .. }
        | CommitError::Uid { .. } => Rejected::Conflict(error.to_string()),
        CommitError::Closed => Rejected::Disconnected,
        error => Rejected::Failed(error.to_string()),
    }
}

impl Nodes for Links {
    fn logs(
        &self,
        pod: Arc<Object>,
        options: LogsOptions,
    ) -> BoxFuture<'static, Result<api::ByteStream, api::CallError>> {
        let links = self.clone();
        Box::pin(async move {
            let node = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref()?.node_name.clone()).unwrap_or_default();
            let Some(caller) = links.caller(&node) else { return Err(api::CallError::Unreachable { node }) };
            let call = Call::Logs(sync::Logs {
                namespace: pod.key().namespace.to_string(),
                pod: pod.key().name.to_string(),
                container: options.container,
                follow: options.follow,
                previous: options.previous,
                since: options.since,
                tail_lines: options.tail_lines,
                limit_bytes: options.limit_bytes,
                timestamps: options.timestamps,
                stdout: options.stream != LogStreamKind::Stderr,
                stderr: options.stream != LogStreamKind::Stdout,
            });
            let told = move |error| told(error, &node);
            let outputs = caller.call(call, sync::no_input()).await.map_err(&told)?;
            let bytes = outputs.filter_map(move |output| {
                let piece = match output {
                    Ok(Output::Stdout(bytes) | Output::Stderr(bytes)) => Some(Ok(bytes)),
                    Ok(Output::Exit(_)) => None,
                    Err(error) => Some(Err(told(error))),
                };
                std::future::ready(piece)
            });
            Ok(bytes.boxed())
        })
    }
}

fn told(error: CallError, node: &str) -> api::CallError {
    match error {
        CallError::Disconnected => api::CallError::Unreachable { node: node.to_owned() },
        CallError::NotFound(message) => api::CallError::NotFound { message },
        CallError::BadRequest(message) => api::CallError::Refused { message },
        CallError::Failed(message) => api::CallError::Failed { message },
    }
}
