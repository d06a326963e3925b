//! The nodes that are linked to this master: each gets its slice of the events, and is reachable for calls.
//!
//! A link is served the same whoever carries it; today the only one is in memory, to the agent of this process.

use api::{AttachOptions, ExecOptions, Input, LogStreamKind, LogsOptions, Nodes, Opening};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Pod;
use state::Object;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::{CommitError, Store, WatchError};
use sync::{Call, CallError, Caller, Down, MasterEnd, NodeEnd, Output, Rejected, Up, slice};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Batches of one node's writes that are being committed at once.
const COMMITS_IN_FLIGHT_MAX: usize = 256;
/// Pieces of a client's input on their way to a node.
const INPUTS_MAX: usize = 4;
/// Bytes of a node's figures of use.
const USAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

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

async fn take_writes(store: Store, mut up: mpsc::Receiver<Up>) {
    let mut commits = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = commits.next() => {}
            batch = up.recv(), if commits.len() < COMMITS_IN_FLIGHT_MAX => match batch {
                Some(Up::Renew(renewal)) => renewal.answer(Err(Rejected::Failed("not served yet".into()))),
                Some(Up::Writes(mut batch)) => {
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
        let outputs = self.call(node_of(&pod), call, sync::no_input());
        Box::pin(async move {
            let bytes = outputs.await?.filter_map(|output| {
                let piece = match output {
                    Ok(api::Output::Stdout(bytes) | api::Output::Stderr(bytes)) => Some(Ok(bytes)),
                    Ok(api::Output::Exit(_)) => None,
                    Err(error) => Some(Err(error)),
                };
                std::future::ready(piece)
            });
            Ok(bytes.boxed())
        })
    }

    fn exec(&self, pod: Arc<Object>, options: ExecOptions, input: mpsc::Receiver<Input>) -> Opening {
        let api::Streams { stdin, stdout, stderr, tty } = options.streams;
        let call = Call::Exec(sync::Exec {
            namespace: pod.key().namespace.to_string(),
            pod: pod.key().name.to_string(),
            uid: pod.meta().uid.clone(),
            container: options.container,
            command: options.command,
            stdin,
            stdout,
            stderr,
            tty,
        });
        self.call(node_of(&pod), call, relay(input))
    }

    fn attach(&self, pod: Arc<Object>, options: AttachOptions, input: mpsc::Receiver<Input>) -> Opening {
        let api::Streams { stdin, stdout, stderr, tty } = options.streams;
        let call = Call::Attach(sync::Attach {
            namespace: pod.key().namespace.to_string(),
            pod: pod.key().name.to_string(),
            uid: pod.meta().uid.clone(),
            container: options.container,
            stdin,
            stdout,
            stderr,
            tty,
        });
        self.call(node_of(&pod), call, relay(input))
    }

    fn port_forward(&self, pod: Arc<Object>, port: u16, input: mpsc::Receiver<Input>) -> Opening {
        let call = Call::PortForward(sync::PortForward {
            namespace: pod.key().namespace.to_string(),
            pod: pod.key().name.to_string(),
            uid: pod.meta().uid.clone(),
            port,
        });
        self.call(node_of(&pod), call, relay(input))
    }

    fn usage(&self, node: String) -> BoxFuture<'static, Result<api::NodeUsage, api::CallError>> {
        let outputs = self.call(node, Call::Usage, sync::no_input());
        Box::pin(async move {
            let (mut outputs, mut json) = (outputs.await?, Vec::new());
            while let Some(output) = outputs.next().await {
                let api::Output::Stdout(bytes) = output? else { continue };
                json.extend_from_slice(&bytes);
                if json.len() > USAGE_BYTES_MAX {
                    return Err(api::CallError::Failed { message: "the node's figures of use are too long".into() });
                }
            }
            let usage: sync::NodeUsage = serde_json::from_slice(&json)
                .map_err(|error| api::CallError::Failed { message: format!("the node's figures of use: {error}") })?;
            Ok(used(usage))
        })
    }
}

impl Links {
    /// Asks a node, in the API's words.
    fn call(&self, node: String, call: Call, input: mpsc::Receiver<sync::Input>) -> Opening {
        let caller = self.caller(&node);
        Box::pin(async move {
            let Some(caller) = caller else { return Err(api::CallError::Unreachable { node }) };
            let told = move |error| told(error, &node);
            let outputs = caller.call(call, input).await.map_err(&told)?;
            let outputs = outputs.map(move |output| match output {
                Ok(Output::Stdout(bytes)) => Ok(api::Output::Stdout(bytes)),
                Ok(Output::Stderr(bytes)) => Ok(api::Output::Stderr(bytes)),
                Ok(Output::Exit(code)) => Ok(api::Output::Exit(code)),
                Err(error) => Err(told(error)),
            });
            Ok(outputs.boxed())
        })
    }
}

fn node_of(pod: &Object) -> String {
    pod.view::<Pod>().and_then(|pod| pod.spec.as_ref()?.node_name.clone()).unwrap_or_default()
}

/// Hands a client's input on in the link's words; the end of either side is the other's.
fn relay(mut from: mpsc::Receiver<Input>) -> mpsc::Receiver<sync::Input> {
    let (to, input) = mpsc::channel(INPUTS_MAX);
    tokio::spawn(async move {
        loop {
            let piece = tokio::select! {
                () = to.closed() => return,
                piece = from.recv() => piece,
            };
            let piece = match piece {
                Some(Input::Data(bytes)) => sync::Input::Data(bytes),
                Some(Input::End) => sync::Input::End,
                Some(Input::Resize { columns, rows }) => sync::Input::Resize { columns, rows },
                None => return,
            };
            if to.send(piece).await.is_err() {
                return;
            }
        }
    });
    input
}

fn used(usage: sync::NodeUsage) -> api::NodeUsage {
    let pods = usage.pods.into_iter().map(|pod| api::PodUsage {
        namespace: pod.namespace,
        name: pod.name,
        uid: pod.uid,
        containers: pod
            .containers
            .into_iter()
            .map(|one| (one.name, figures(one.cpu_nanocores, one.memory_bytes)))
            .collect(),
    });
    api::NodeUsage {
        timestamp: usage.timestamp,
        window: Duration::from_millis(usage.window_ms),
        total: figures(usage.cpu_nanocores, usage.memory_bytes),
        pods: pods.collect(),
    }
}

fn figures(cpu_nanocores: u64, memory_bytes: u64) -> api::Usage {
    api::Usage { cpu_nanocores, memory_bytes }
}

fn told(error: CallError, node: &str) -> api::CallError {
    match error {
        CallError::Disconnected => api::CallError::Unreachable { node: node.to_owned() },
        CallError::NotFound(message) => api::CallError::NotFound { message },
        CallError::BadRequest(message) => api::CallError::Refused { message },
        CallError::Failed(message) => api::CallError::Failed { message },
    }
}
