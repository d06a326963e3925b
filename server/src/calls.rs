//! What the API asks of nodes, in the link's words, and what they answer, in the API's.

use crate::links::Links;
use api::{AttachOptions, ExecOptions, Input, LogStreamKind, LogsOptions, Nodes, Opening};
use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use state::Object;
use std::sync::Arc;
use std::time::Duration;
use sync::{Call, CallError, Output};
use tokio::sync::mpsc;

/// Pieces of a client's input on their way to a node.
const INPUTS_MAX: usize = 4;
/// Bytes of a node's figures of use.
const USAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

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
