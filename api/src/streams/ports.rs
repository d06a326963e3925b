//! A pod's ports: many connections to them over one connection of a client, by SPDY or by a WebSocket's channels.

use super::channels::{CLOSE, Protocol};
use super::spdy::{Connection, Gone, Stream};
use super::websocket::{Socket, goodbye};
use super::{Activity, GOODBYE_TIME_MAX, INPUTS_MAX, PING_INTERVAL, options};
use crate::nodes::{Input, Nodes, Output};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use state::Object;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, interval, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// How long one of a connection's two streams may wait for the other; Kubernetes' time.
const PAIR_TIME_MAX: Duration = Duration::from_secs(30);
/// How often that is looked at.
const PAIR_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Messages of all ports that wait for a WebSocket.
const MESSAGES_MAX: usize = 16;

/// The pod that ports are of.
#[derive(Clone)]
pub struct Target {
    /// The way to its node.
    pub nodes: Arc<dyn Nodes>,
    /// The pod.
    pub pod: Arc<Object>,
}

impl Target {
    fn failure(&self, port: u16, error: &dyn std::fmt::Display) -> String {
        let (name, uid) = (&self.pod.meta().name, &self.pod.meta().uid);
        format!("error forwarding port {port} to pod {name}, uid {uid}: {error}")
    }
}

/// The two streams of one connection.
#[derive(Default)]
struct Pair {
    data: Option<Stream>,
    error: Option<Stream>,
}

/// Forwards the connections that a client opens, until it hangs up.
pub async fn over_spdy(mut connection: Connection, target: Target) {
    let mut waiting: HashMap<String, (Instant, Pair)> = HashMap::new();
    let mut forwards = JoinSet::new();
    let mut check = interval(PAIR_CHECK_INTERVAL);
    loop {
        tokio::select! {
            stream = connection.next() => {
                let Some(stream) = stream else { return };
                if let Some((port, data, error)) = pair(&mut waiting, stream) {
                    forwards.spawn(forward(target.clone(), port, data, error));
                }
            }
            Some(_) = forwards.join_next(), if !forwards.is_empty() => {}
            _ = check.tick(), if !waiting.is_empty() => {
                waiting.retain(|_, (since, _)| since.elapsed() < PAIR_TIME_MAX);
            }
        }
    }
}

/// Takes a new stream, and gives out the two of a connection when both are there. One that names no port is refused.
fn pair(waiting: &mut HashMap<String, (Instant, Pair)>, stream: Stream) -> Option<(u16, Stream, Stream)> {
    let headers = stream.headers();
    let port = options::port(headers.get("port")?).ok()?;
    let kind = headers.get("streamtype")?.to_ascii_lowercase();
    let is_data = kind == "data";
    if !is_data && kind != "error" {
        return None;
    }
    // clients without request ids open the error stream and then its data stream
    let of_ids = || if is_data { stream.id().wrapping_sub(2) } else { stream.id() };
    let id = headers.get("requestid").map_or_else(|| format!("stream {}", of_ids()), str::to_owned);
    let (_, pair) = waiting.entry(id.clone()).or_insert_with(|| (Instant::now(), Pair::default()));
    let place = if is_data { &mut pair.data } else { &mut pair.error };
    if place.is_some() {
        return None;
    }
    stream.accept();
    *place = Some(stream);
    if pair.data.is_none() || pair.error.is_none() {
        return None;
    }
    let (_, pair) = waiting.remove(&id)?;
    Some((port, pair.data?, pair.error?))
}

/// One connection.
async fn forward(target: Target, port: u16, data: Stream, error: Stream) {
    let ((mut from_client, to_client), (_, errors)) = (data.split(), error.split());
    let (input, receiver) = mpsc::channel(INPUTS_MAX);
    let opened = target.nodes.port_forward(target.pod.clone(), port, receiver).await;
    let mut outputs = match opened {
        Ok(outputs) => outputs,
        Err(why) => {
            // a client that has gone needs no word
            let _ = errors.write(target.failure(port, &why).into()).await;
            let _ = errors.finish().await;
            let _ = to_client.finish().await;
            return;
        }
    };
    let up = async {
        loop {
            let sent = tokio::select! {
                read = from_client.read() => match read {
                    Some(Ok(bytes)) => Input::Data(bytes),
                    None => Input::End,
                    Some(Err(Gone)) => return Err(Gone),
                },
                // the pod takes nothing any more
                () = input.closed() => return Ok(()),
            };
            let is_end = sent == Input::End;
            if input.send(sent).await.is_err() || is_end {
                return Ok(());
            }
        }
    };
    let down = async {
        let mut failure = None;
        while let Some(output) = outputs.next().await {
            match output {
                Ok(Output::Stdout(bytes) | Output::Stderr(bytes)) => to_client.write(bytes).await?,
                Ok(Output::Exit(_)) => {}
                Err(why) => {
                    failure = Some(target.failure(port, &why));
                    break;
                }
            }
        }
        if let Some(failure) = failure {
            errors.write(failure.into()).await?;
        }
        // clients wait for the end of the errors before they let their own half go
        to_client.finish().await?;
        errors.finish().await
    };
    // when the client breaks off, so does the connection to the pod
    let _ = tokio::try_join!(up, down);
}

/// Forwards one connection to each of `ports`, until all have ended or the client hangs up.
pub async fn over_websocket<I>(socket: Socket<I>, protocol: Protocol, ports: Vec<u16>, target: Target)
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut messages) = socket.split();
    let activity = Activity::default();
    let (to_client, mut sending) = mpsc::channel(MESSAGES_MAX);
    let (mut inputs, mut channels) = (Vec::new(), JoinSet::new());
    for (at, port) in ports.iter().enumerate() {
        // there are fewer ports than half of the channels
        let data = (at * 2) as u8;
        let (input, receiver) = mpsc::channel(INPUTS_MAX);
        let ended = CancellationToken::new();
        inputs.push(Some((input.clone(), ended.clone())));
        let channel = Channel { protocol, data, port: *port, to_client: to_client.clone(), input, ended };
        channels.spawn(channel.run(target.clone(), receiver));
    }
    drop(to_client);
    let send = async {
        let mut ping = interval(PING_INTERVAL);
        loop {
            tokio::select! {
                message = sending.recv() => {
                    // the channels have ended
                    let Some(message) = message else { return sink.send(goodbye()).await.is_ok() };
                    activity.touch();
                    if sink.send(message).await.is_err() {
                        return false;
                    }
                }
                _ = ping.tick() => {
                    if activity.is_idle() || sink.send(Message::Ping(Bytes::new())).await.is_err() {
                        return false;
                    }
                }
            }
        }
    };
    let take = async {
        while let Some(Ok(message)) = messages.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => return,
                _ => continue,
            };
            activity.touch();
            let Some((channel, payload)) = protocol.read(bytes) else { continue };
            let (channel, sent) = match (channel, payload.first()) {
                (CLOSE, Some(ended)) if protocol.can_close => (*ended, Input::End),
                _ => (channel, Input::Data(payload)),
            };
            let Some(input) = inputs.get_mut(usize::from(channel / 2)).filter(|_| channel % 2 == 0) else { continue };
            if let Some((open, ended)) = input {
                let is_end = sent == Input::End;
                // a port that takes nothing any more does not end the others
                if open.send(sent).await.is_err() || is_end {
                    ended.cancel();
                    *input = None;
                }
            }
        }
    };
    let is_polite = tokio::select! {
        closed = send => closed,
        () = take => false,
    };
    if is_polite {
        let hung_up = async { while let Some(Ok(_)) = messages.next().await {} };
        // a client that does not hang up is left
        let _ = timeout(GOODBYE_TIME_MAX, hung_up).await;
    }
}

/// One port of a WebSocket: its data, and on the next channel what went wrong.
struct Channel {
    protocol: Protocol,
    data: u8,
    port: u16,
    to_client: mpsc::Sender<Message>,
    /// Tells when the pod takes nothing any more.
    input: mpsc::Sender<Input>,
    /// The client sends nothing any more.
    ended: CancellationToken,
}

impl Channel {
    async fn run(self, target: Target, input: mpsc::Receiver<Input>) {
        // a client that has gone ends this
        let _ = self.forward(target, input).await;
    }

    async fn send(&self, channel: u8, payload: &[u8]) -> Result<(), Gone> {
        self.to_client.send(self.protocol.message(channel, payload)).await.map_err(|_| Gone)
    }

    async fn forward(&self, target: Target, input: mpsc::Receiver<Input>) -> Result<(), Gone> {
        for channel in [self.data, self.data + 1] {
            self.send(channel, &self.port.to_le_bytes()).await?;
        }
        let failure = match target.nodes.port_forward(target.pod.clone(), self.port, input).await {
            Err(error) => Some(error),
            Ok(mut outputs) => loop {
                match outputs.next().await {
                    Some(Ok(Output::Stdout(bytes) | Output::Stderr(bytes))) => self.send(self.data, &bytes).await?,
                    Some(Ok(Output::Exit(_))) => {}
                    Some(Err(error)) => break Some(error),
                    None => break None,
                }
            },
        };
        if let Some(failure) = failure {
            self.send(self.data + 1, target.failure(self.port, &failure).as_bytes()).await?;
        }
        if self.protocol.can_close {
            self.send(CLOSE, &[self.data]).await?;
            tokio::select! {
                () = self.ended.cancelled() => {}
                () = self.input.closed() => {}
            }
        }
        Ok(())
    }
}
