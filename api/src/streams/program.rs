//! A program's streams between a client and its node: exec and attach, over a WebSocket or SPDY.

use super::channels::{CLOSE, Protocol};
use super::outcome::Outcome;
use super::spdy::{Connection, ReadHalf, Stream, WriteHalf};
use super::websocket::{Socket, goodbye};
use super::{Activity, GOODBYE_TIME_MAX, PING_INTERVAL};
use crate::nodes::{Input, Output, OutputStream, Streams};
use bytes::Bytes;
use futures::{Sink, SinkExt, Stream as Messages, StreamExt};
use serde::Deserialize;
use std::collections::{HashMap, VecDeque};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Duration, interval, timeout};
use tokio_tungstenite::tungstenite::{self, Message};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// How long a client may take to open the streams it asked for; Kubernetes' time.
const STREAMS_TIME_MAX: Duration = Duration::from_secs(30);
/// Kubernetes' own client begins to read a WebSocket before it has made its streams, and throws away what comes for one that it
/// has not made yet. It has made them when it says something; until then the first word waits, this long at most. 2 ms were too
/// short once in a hundred times. Ours says at once that it is alive.
const FIRST_WORD_AFTER: Duration = Duration::from_millis(50);
/// Input of a WebSocket's client that waits for its program; a piece counts for so many bytes at least.
const INPUT_BYTES_MAX: usize = 64 * 1024;
const INPUT_COST_MIN: usize = 64;
/// Bytes of a terminal's size as JSON, and of what waits to become one.
const RESIZE_BYTES_MAX: usize = 4096;

/// A program at its node.
pub struct Program {
    /// What the client sends. Held to the end: its drop says that the client has gone.
    pub input: mpsc::Sender<Input>,
    /// What comes back.
    pub outputs: OutputStream,
    /// Which streams the client wants.
    pub streams: Streams,
    /// Its exit code is the client's business: exec, not attach.
    pub tells_exit: bool,
}

impl Program {
    fn doing(&self) -> &'static str {
        if self.tells_exit { "executing command in container" } else { "attaching to container" }
    }

    /// The next piece for the client, or the last word.
    async fn next(&mut self) -> Result<(u8, Bytes), Outcome> {
        loop {
            match self.outputs.next().await {
                Some(Ok(Output::Stdout(bytes))) if self.streams.stdout => return Ok((STDOUT, bytes)),
                Some(Ok(Output::Stderr(bytes))) if self.streams.stderr => return Ok((STDERR, bytes)),
                // not wanted
                Some(Ok(Output::Stdout(_) | Output::Stderr(_))) => {}
                Some(Ok(Output::Exit(code))) if self.tells_exit && code != 0 => return Err(Outcome::Exit(code)),
                Some(Ok(Output::Exit(_))) => return Err(Outcome::Success),
                Some(Err(error)) => return Err(Outcome::failed(self.doing(), &error)),
                None if self.tells_exit => {
                    let message = format!("error {}: the node did not say how it ended", self.doing());
                    return Err(Outcome::Failure(message));
                }
                None => return Err(Outcome::Success),
            }
        }
    }
}

/// A terminal's size as clients send it.
#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

impl From<Size> for Input {
    fn from(size: Size) -> Self {
        Self::Resize { columns: size.width, rows: size.height }
    }
}

/// Serves a program over a WebSocket until it or the client ends.
pub async fn over_websocket<I>(socket: Socket<I>, protocol: Protocol, mut program: Program)
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, messages) = socket.split();
    let activity = Activity::default();
    let input = program.input.clone();
    let (streams, heard) = (program.streams, Notify::new());
    // of the client's first word, whatever it is
    let mut messages = messages.inspect(|_| heard.notify_one());
    let outcome = tokio::select! {
        outcome = send_outputs(&mut sink, protocol, &mut program, &activity, heard.notified()) => outcome,
        () = take_messages(&mut messages, protocol, streams, &input, &activity) => None,
    };
    let Some(outcome) = outcome else { return };
    // the node's side has ended
    drop((program, input));
    let word = if protocol.has_status { outcome.to_value().to_string() } else { outcome.to_text() };
    let goodbye = async {
        if !word.is_empty() && sink.send(protocol.message(ERROR, word.as_bytes())).await.is_err() {
            return;
        }
        if sink.send(goodbye()).await.is_ok() {
            // what the client still sends is read, so that nothing of ours is lost on its way
            while let Some(Ok(_)) = messages.next().await {}
        }
    };
    // a client that does not hang up is left
    let _ = timeout(GOODBYE_TIME_MAX, goodbye).await;
}

/// Sends what the program says; its outcome, or `None` when the client takes nothing any more.
async fn send_outputs(
    sink: &mut (impl Sink<Message, Error = tungstenite::Error> + Unpin),
    protocol: Protocol,
    program: &mut Program,
    activity: &Activity,
    heard: impl Future<Output = ()>,
) -> Option<Outcome> {
    // either will do
    let _ = timeout(FIRST_WORD_AFTER, heard).await;
    // tells clients that the streams are there
    let first = match program.streams {
        Streams { stdout: true, .. } => STDOUT,
        Streams { stderr: true, .. } => STDERR,
        _ => ERROR,
    };
    sink.send(protocol.message(first, b"")).await.ok()?;
    let mut ping = interval(PING_INTERVAL);
    loop {
        tokio::select! {
            piece = program.next() => match piece {
                Ok((channel, bytes)) => {
                    activity.touch();
                    sink.send(protocol.message(channel, &bytes)).await.ok()?;
                }
                Err(outcome) => return Some(outcome),
            },
            _ = ping.tick() => {
                if activity.is_idle() {
                    return None;
                }
                sink.send(Message::Ping(Bytes::new())).await.ok()?;
            }
        }
    }
}

/// Takes what the client sends, until it has gone. A program that is slow to read does not keep what was typed from being heard,
/// nor a ping from being answered, until [`INPUT_BYTES_MAX`] wait.
async fn take_messages(
    messages: &mut (impl Messages<Item = Result<Message, tungstenite::Error>> + Unpin),
    protocol: Protocol,
    streams: Streams,
    input: &mpsc::Sender<Input>,
    activity: &Activity,
) {
    let mut taking = Taking { protocol, streams, has_ended: false };
    let (mut waiting, mut waiting_bytes) = (VecDeque::new(), 0);
    loop {
        let message = tokio::select! {
            room = input.reserve(), if !waiting.is_empty() => {
                let Ok(room) = room else {
                    // a program that takes no input any more may still say much
                    waiting.clear();
                    waiting_bytes = 0;
                    continue;
                };
                if let Some(first) = waiting.pop_front() {
                    waiting_bytes -= cost(&first);
                    room.send(first);
                }
                continue;
            }
            message = messages.next(), if waiting_bytes < INPUT_BYTES_MAX => message,
        };
        let bytes = match message {
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Text(text))) => text.into(),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            Some(Ok(_)) => continue,
        };
        activity.touch();
        if let Some(taken) = taking.take(bytes) {
            waiting_bytes += cost(&taken);
            waiting.push_back(taken);
        }
    }
}

/// Bytes that a waiting piece of input counts for.
fn cost(input: &Input) -> usize {
    let bytes = if let Input::Data(bytes) = input { bytes.len() } else { 0 };
    bytes.max(INPUT_COST_MIN)
}

/// What a WebSocket's messages mean to a program.
struct Taking {
    protocol: Protocol,
    streams: Streams,
    has_ended: bool,
}

impl Taking {
    fn take(&mut self, message: Bytes) -> Option<Input> {
        let (channel, payload) = self.protocol.read(message)?;
        match channel {
            STDIN if self.streams.stdin && !self.has_ended && !payload.is_empty() => Some(Input::Data(payload)),
            RESIZE if self.streams.tty && payload.len() <= RESIZE_BYTES_MAX => {
                serde_json::from_slice::<Size>(&payload).ok().map(Input::from)
            }
            CLOSE if self.protocol.can_close && payload.first() == Some(&STDIN) && !self.has_ended => {
                self.has_ended = true;
                Some(Input::End)
            }
            // channels that nobody asked for
            _ => None,
        }
    }
}

/// Serves a program over SPDY until it or the client ends.
pub async fn over_spdy(mut connection: Connection, protocol: Protocol, resizes: bool, mut program: Program) {
    let Ok(Some(mut streams)) = timeout(STREAMS_TIME_MAX, collect(&mut connection, program.streams, resizes)).await
    else {
        tracing::debug!("a client did not open the streams it asked for");
        return connection.close().await;
    };
    let mut take = |name: &str| streams.remove(name).map(Stream::split);
    let Some((_reading, error)) = take("error") else { return };
    let (stdin, resize) = (take("stdin"), take("resize"));
    let (stdout, stderr) = (take("stdout").map(|(_, out)| out), take("stderr").map(|(_, out)| out));
    let input = program.input.clone();
    let taking = async {
        let stdin = async {
            if let Some((reading, _)) = stdin {
                take_stdin(reading, &input).await;
            }
        };
        let resize = async {
            if let Some((reading, _)) = resize {
                take_sizes(reading, &input).await;
            }
        };
        tokio::join!(stdin, resize);
        // the program's end is what ends the session
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = send_pieces(&mut program, stdout.as_ref(), stderr.as_ref()) => outcome,
        () = taking => return,
        () = connection.closed() => return,
    };
    // the node's side has ended
    drop((program, input));
    let goodbye = async {
        for stream in [&stdout, &stderr].into_iter().flatten() {
            // a client that broke a stream off has its reasons
            let _ = stream.finish().await;
        }
        let word = if protocol.has_status { outcome.to_value().to_string() } else { outcome.to_text() };
        let _ = error.write(word.into()).await;
        let _ = error.finish().await;
        // Go's clients throw away what they have not read when the connection ends: they are to end it
        connection.closed().await;
    };
    let _ = timeout(GOODBYE_TIME_MAX, goodbye).await;
    connection.close().await;
}

async fn send_pieces(program: &mut Program, stdout: Option<&WriteHalf>, stderr: Option<&WriteHalf>) -> Outcome {
    loop {
        match program.next().await {
            Ok((channel, bytes)) => {
                let stream = if channel == STDOUT { stdout } else { stderr };
                if let Some(stream) = stream {
                    // a client may break off one stream and go on with the others
                    let _ = stream.write(bytes).await;
                }
            }
            Err(outcome) => return outcome,
        }
    }
}

/// The streams that a client must open.
async fn collect(connection: &mut Connection, wanted: Streams, resizes: bool) -> Option<HashMap<&'static str, Stream>> {
    let all = [
        ("error", true),
        ("stdin", wanted.stdin),
        ("stdout", wanted.stdout),
        ("stderr", wanted.stderr),
        ("resize", wanted.tty && resizes),
    ];
    let expected: Vec<&'static str> = all.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name).collect();
    let mut found = HashMap::new();
    while found.len() < expected.len() {
        let stream = connection.next().await?;
        let named = stream.headers().get("streamtype").unwrap_or_default();
        // another one is refused by its drop
        if let Some(name) = expected.iter().find(|name| named.eq_ignore_ascii_case(name))
            && !found.contains_key(name)
        {
            stream.accept();
            found.insert(*name, stream);
        }
    }
    Some(found)
}

async fn take_stdin(mut reading: ReadHalf, input: &mpsc::Sender<Input>) {
    loop {
        let sent = match reading.read().await {
            Some(Ok(bytes)) => Input::Data(bytes),
            // broken off is as good as ended: the connection says whether the client has gone
            None | Some(Err(_)) => Input::End,
        };
        let is_end = sent == Input::End;
        if input.send(sent).await.is_err() || is_end {
            return;
        }
    }
}

async fn take_sizes(mut reading: ReadHalf, input: &mpsc::Sender<Input>) {
    let mut waiting = Vec::new();
    while let Some(Ok(bytes)) = reading.read().await {
        waiting.extend_from_slice(&bytes);
        let mut sizes = serde_json::Deserializer::from_slice(&waiting).into_iter::<Size>();
        let mut last = None;
        while let Some(Ok(size)) = sizes.next() {
            last = Some(size);
        }
        let read = sizes.byte_offset();
        waiting.drain(..read);
        if let Some(size) = last
            && input.send(size.into()).await.is_err()
        {
            return;
        }
        if waiting.len() > RESIZE_BYTES_MAX {
            return;
        }
    }
}
