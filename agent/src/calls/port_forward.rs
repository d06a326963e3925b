//! Port-forward: one connection to a port of a pod, as from the pod's own localhost.

use super::find_pod;
use crate::body::{Body, LiveGuest};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::unfold;
use k8s_openapi::api::core::v1::Pod;
use runtime::NetworkNamespace;
use state::Object;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use sync::{CallError, Input, Output, OutputStream, PortForward};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

/// A connection must be there by then.
const CONNECT: Duration = Duration::from_secs(10);
/// Bytes that are read at once.
const PIECE_BYTES_MAX: usize = 32 << 10;

/// Connects.
pub async fn open(body: &Body, wanted: PortForward, input: mpsc::Receiver<Input>) -> Result<OutputStream, CallError> {
    let pod = find_pod(body, &wanted.namespace, &wanted.pod, &wanted.uid)?;
    let uid = pod.meta().uid.as_str();
    let live = body.guests.lock().iter().find(|((of, _), _)| of == uid).map(|(_, live)| live.clone());
    let Some(live) = live else {
        let phase = pod.view::<Pod>().and_then(|pod| pod.status.as_ref()?.phase.clone()).unwrap_or_default();
        return Err(CallError::BadRequest(format!(
            "unable to forward port because pod is not running. Current status={phase}"
        )));
    };
    let connecting = tokio::time::timeout(CONNECT, connect(body, &pod, &live, wanted.port));
    let stream = connecting.await.unwrap_or_else(|_| Err("i/o timeout".into()));
    let stream = stream.map_err(|cause| CallError::Failed(format!("unable to do port forwarding: {cause}")))?;
    Ok(carry(stream, input))
}

async fn connect(body: &Body, pod: &Object, live: &LiveGuest, port: u16) -> Result<TcpStream, String> {
    // what is served in this process needs no socket, and the kernel may not have given it one
    let own = SocketAddr::new(live.address, port);
    match body.proxy.connect_pod(own).await {
        Ok(Some(stream)) => return Ok(stream),
        Ok(None) => {}
        Err(error) => return Err(error.to_string()),
    }
    let is_host = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref()?.host_network) == Some(true);
    if let Some(sandbox) = &live.sandbox
        && let Some(namespace) = &sandbox.namespace
    {
        return to_localhost(Some(namespace), port).await.map_err(|cause| {
            format!("failed to connect to localhost:{port} inside namespace {:?}, {cause}", sandbox.id)
        });
    }
    if is_host {
        return match to_localhost(None, port).await {
            Ok(stream) => Ok(stream),
            // a program in this process has the node's address for its localhost
            Err(cause) => body
                .ground
                .connect(&own.ip().to_string(), port)
                .await
                .map_err(|_| format!("failed to connect to localhost:{port} on the node, {cause}")),
        };
    }
    let connected = body.ground.connect(&own.ip().to_string(), port).await;
    connected.map_err(|error| format!("failed to connect to localhost:{port} of the pod, {}", dial("", own, &error)))
}

/// The localhost of a namespace, or of the node.
async fn to_localhost(namespace: Option<&NetworkNamespace>, port: u16) -> Result<TcpStream, String> {
    let mut causes = Vec::new();
    for (name, address) in [("4", IpAddr::V4(Ipv4Addr::LOCALHOST)), ("6", IpAddr::V6(Ipv6Addr::LOCALHOST))] {
        let to = SocketAddr::new(address, port);
        let connected = match namespace {
            Some(namespace) => namespace.connect(to).await,
            None => TcpStream::connect(to).await,
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => causes.push(dial(name, to, &error)),
        }
    }
    Err(format!("IPv4: {} IPv6 {}", causes[0], causes[1]))
}

fn dial(family: &str, to: SocketAddr, error: &io::Error) -> String {
    let cause = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::AddrNotAvailable => "connect: cannot assign requested address".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp{family} {to}: {cause}")
}

/// Bytes both ways; each side's end is passed on as half of the connection's.
fn carry(stream: TcpStream, input: mpsc::Receiver<Input>) -> OutputStream {
    // failure only means a little slower
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    let (broken, breaking) = oneshot::channel();
    let writing = tokio::spawn(async move {
        if let Err(error) = send(write, input).await {
            drop(broken.send(error));
        } else {
            // the reading side lives on: only its end ends the call
            std::future::pending::<()>().await;
        }
    });
    let state = State { read, breaking, _writing: AbortOnDropHandle::new(writing) };
    unfold(Some(state), async |state| state?.next().await).boxed()
}

/// Input to the pod. A client that is gone without having said its last breaks the connection off.
async fn send(mut write: OwnedWriteHalf, mut input: mpsc::Receiver<Input>) -> io::Result<()> {
    while let Some(piece) = input.recv().await {
        match piece {
            Input::Data(bytes) => write.write_all(&bytes).await?,
            Input::End => {
                write.shutdown().await?;
                // held, so that the drop does not close what the other half reads
                std::future::pending::<()>().await;
            }
            Input::Resize { .. } => {}
        }
    }
    Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client is gone"))
}

struct State {
    read: OwnedReadHalf,
    breaking: oneshot::Receiver<io::Error>,
    _writing: AbortOnDropHandle<()>,
}

impl State {
    async fn next(mut self) -> Option<(Result<Output, CallError>, Option<Self>)> {
        let mut bytes = BytesMut::with_capacity(PIECE_BYTES_MAX);
        let read = tokio::select! {
            read = self.read.read_buf(&mut bytes) => read,
            Ok(error) = &mut self.breaking => Err(error),
        };
        match read {
            Ok(0) => None,
            Ok(_) => Some((Ok(Output::Stdout(Bytes::from(bytes))), Some(self))),
            Err(error) => Some((Err(CallError::Failed(format!("error forwarding port: {error}"))), None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (ours, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn each_side_ends_for_itself() {
        let (ours, mut pod) = connected().await;
        let (client, input) = mpsc::channel(1);
        let mut answer = carry(ours, input);
        client.send(Input::Data("question".into())).await.unwrap();
        client.send(Input::End).await.unwrap();
        let mut asked = String::new();
        pod.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "question");
        // the client has said its last, its channel may go
        drop(client);
        pod.write_all(b"answer").await.unwrap();
        assert_eq!(answer.next().await, Some(Ok(Output::Stdout("answer".into()))));
        drop(pod);
        assert_eq!(answer.next().await, None);
    }

    #[tokio::test]
    async fn the_pods_end_does_not_keep_the_client_from_asking() {
        let (ours, mut pod) = connected().await;
        let (client, input) = mpsc::channel(1);
        let mut answer = carry(ours, input);
        pod.shutdown().await.unwrap();
        assert_eq!(answer.next().await, None);
        client.send(Input::Data("late".into())).await.unwrap();
        drop(answer);
        // dropping the answer ends the call; what was sent before may or may not arrive, but the connection ends
        let mut rest = Vec::new();
        let _ = pod.read_to_end(&mut rest).await;
        assert!(rest.is_empty() || rest == b"late");
    }

    #[tokio::test]
    async fn a_client_that_leaves_breaks_the_connection_off() {
        let (ours, mut pod) = connected().await;
        let (client, input) = mpsc::channel::<Input>(1);
        let mut answer = carry(ours, input);
        drop(client);
        assert!(matches!(answer.next().await, Some(Err(CallError::Failed(_)))));
        assert_eq!(answer.next().await, None);
        drop(answer);
        assert_eq!(pod.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn nobody_there_is_said_as_the_kubelet_does() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let error = to_localhost(None, free).await.unwrap_err();
        let start =
            format!("IPv4: dial tcp4 127.0.0.1:{free}: connect: connection refused IPv6 dial tcp6 [::1]:{free}: ");
        assert!(error.starts_with(&start), "{error}");
    }
}
