//! A remote program's streams over one WebSocket: stdin, stdout, stderr, the terminal's size, and how it ended.
//!
//! One byte before each message names the channel. Reading and writing do not wait for each other: who writes to us may well be
//! who reads from us.

use std::io::Write;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::Message;

use super::super::client::Client;
use super::super::failure::{Failure, Result, fail};
use super::terminal::Size;
use super::{CLOSE_CHANNEL, PING_EVERY, V4, V5, ended, open};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
/// How many messages of the program wait for our stdout.
const MESSAGES_MAX: usize = 16;

/// Where the program's output goes.
pub enum Sink {
    /// To our own stdout and stderr.
    Ours,
    /// Stdout to a reader of ours, stderr to our own stderr.
    Piped(mpsc::Sender<Bytes>),
    /// Nowhere.
    Nowhere,
}

/// Our ends of the streams.
pub struct Streams {
    /// What the program reads; none if its stdin is not ours. The end of the channel is the end of its stdin.
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    /// Where its output goes.
    pub sink: Sink,
    /// The terminal's sizes; none without a terminal.
    pub sizes: Option<mpsc::Receiver<Size>>,
}

/// Connects the streams and stays until the program has ended. What it ended with is the result.
pub async fn run(client: &Client, path: &str, streams: Streams) -> Result<()> {
    let socket = open(client, path, &[V5, V4]).await?;
    let can_close = socket.protocol == V5;
    let (sender, mut messages) = socket.messages.split();
    let (output, written) = output(streams.sink);
    let receive = async move {
        let outcome = loop {
            match messages.next().await {
                Some(Ok(Message::Binary(bytes))) => match take(bytes, &output).await {
                    Took::Output => {}
                    Took::Status(outcome) => break outcome,
                    Took::NobodyListens => break Err(Failure::Exit(1)),
                },
                Some(Ok(Message::Close(frame))) => break ended(frame.as_ref()),
                Some(Ok(_)) => {}
                Some(Err(error)) => break fail(format!("error reading from the connection: {error}")),
                None => break ended(None),
            }
        };
        drop(output);
        outcome
    };
    let outcome = tokio::select! {
        outcome = receive => outcome,
        never = send(sender, streams.stdin, streams.sizes, can_close) => match never {},
    };
    // All that the program said is written before our own process may end.
    if let Some(written) = written {
        drop(written.await);
    }
    outcome
}

/// Passes on what is typed and how large the terminal is. Never ends: a broken connection is told by the other direction.
async fn send<S>(
    mut sender: S,
    mut stdin: Option<mpsc::Receiver<Bytes>>,
    mut sizes: Option<mpsc::Receiver<Size>>,
    can_close: bool,
) -> std::convert::Infallible
where
    S: futures::Sink<Message> + Unpin,
{
    // the first one at once: a server may wait for a sign that its words are heard
    let mut ping = tokio::time::interval(PING_EVERY);
    loop {
        let message = tokio::select! {
            piece = next(&mut stdin) => match piece {
                Some(piece) => Message::Binary(framed(STDIN, &piece)),
                None => {
                    stdin = None;
                    if !can_close {
                        eprintln!("warning: the server cannot be told that stdin has ended: it speaks {V4} only");
                        continue;
                    }
                    Message::Binary(Bytes::from_static(&[CLOSE_CHANNEL, STDIN]))
                }
            },
            size = next(&mut sizes) => match size {
                Some(size) => Message::Binary(framed(RESIZE, resize(size).as_bytes())),
                None => {
                    sizes = None;
                    continue;
                }
            },
            _ = ping.tick() => Message::Ping(Bytes::new()),
        };
        if sender.send(message).await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn next<T>(channel: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

fn framed(channel: u8, data: &[u8]) -> Bytes {
    let mut message = Vec::with_capacity(data.len() + 1);
    message.push(channel);
    message.extend_from_slice(data);
    message.into()
}

fn resize(size: Size) -> String {
    format!(r#"{{"Width":{},"Height":{}}}"#, size.columns, size.rows)
}

enum Took {
    Output,
    Status(Result<()>),
    NobodyListens,
}

async fn take(mut bytes: Bytes, output: &mpsc::Sender<(u8, Bytes)>) -> Took {
    if bytes.is_empty() {
        return Took::Output;
    }
    let channel = bytes.split_to(1)[0];
    match channel {
        STDOUT | STDERR if bytes.is_empty() => Took::Output,
        STDOUT | STDERR => match output.send((channel, bytes)).await {
            Ok(()) => Took::Output,
            Err(_) => Took::NobodyListens,
        },
        // The empty message on each channel only says that it is there.
        STATUS if !bytes.is_empty() => Took::Status(status(&bytes)),
        _ => Took::Output,
    }
}

/// What the server says about the end of the program.
fn status(bytes: &[u8]) -> Result<()> {
    let Ok(status) = serde_json::from_slice::<Value>(bytes) else {
        return fail(format!("error stream protocol error: {:?}", String::from_utf8_lossy(bytes)));
    };
    if status["status"] == "Success" {
        return Ok(());
    }
    if status["reason"] != "NonZeroExitCode" {
        let message = status["message"].as_str().unwrap_or("error stream protocol error: unknown error");
        return fail(message);
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code = causes
        .filter(|cause| cause["reason"] == "ExitCode")
        .find_map(|cause| cause["message"].as_str()?.parse::<i32>().ok());
    match code {
        Some(code) => Err(Failure::Terminated(code)),
        None => fail("error stream protocol error: no ExitCode cause given"),
    }
}

/// Starts what writes the output, in a thread of its own: our stdout may be read by who writes our stdin. The second value tells
/// when all is written.
fn output(sink: Sink) -> (mpsc::Sender<(u8, Bytes)>, Option<oneshot::Receiver<()>>) {
    let (sender, mut receiver) = mpsc::channel::<(u8, Bytes)>(MESSAGES_MAX);
    match sink {
        Sink::Ours => {
            let (done, written) = oneshot::channel();
            std::thread::spawn(move || {
                while let Some((channel, bytes)) = receiver.blocking_recv() {
                    if write(channel, &bytes).is_err() {
                        break;
                    }
                }
                drop(receiver);
                // Nobody waits any more when the verb has failed already.
                let _ = done.send(());
            });
            (sender, Some(written))
        }
        Sink::Piped(reader) => {
            let (done, written) = oneshot::channel();
            tokio::spawn(async move {
                while let Some((channel, bytes)) = receiver.recv().await {
                    let sent = match channel {
                        STDOUT => reader.send(bytes).await.is_ok(),
                        _ => write(STDERR, &bytes).is_ok(),
                    };
                    if !sent {
                        break;
                    }
                }
                let _ = done.send(());
            });
            (sender, Some(written))
        }
        Sink::Nowhere => {
            tokio::spawn(async move { while receiver.recv().await.is_some() {} });
            (sender, None)
        }
    }
}

fn write(channel: u8, bytes: &[u8]) -> std::io::Result<()> {
    if channel == STDERR {
        return std::io::stderr().lock().write_all(bytes);
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn how_it_ended() {
        let check = |value: Value, code: u8, message: &str| match status(value.to_string().as_bytes()) {
            Ok(()) => assert_eq!((code, message), (0, "")),
            Err(failure) => assert_eq!((failure.exit_code(), failure.message().as_str()), (code, message)),
        };
        check(json!({"status": "Success"}), 0, "");
        let exit =
            |causes: Value| json!({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}});
        check(exit(json!([{"reason": "ExitCode", "message": "7"}])), 7, "command terminated with exit code 7");
        check(exit(json!([])), 1, "error: error stream protocol error: no ExitCode cause given");
        check(
            exit(json!([{"reason": "ExitCode", "message": "x"}])),
            1,
            "error: error stream protocol error: no ExitCode cause given",
        );
        check(
            json!({"status": "Failure", "reason": "InternalError", "message": "Internal error occurred: no such container"}),
            1,
            "error: Internal error occurred: no such container",
        );
        assert_eq!(status(b"what").unwrap_err().message(), "error: error stream protocol error: \"what\"");
    }

    #[test]
    fn frames() {
        assert_eq!(framed(STDIN, b"ab").as_ref(), b"\0ab");
        assert_eq!(resize(Size { columns: 80, rows: 24 }), r#"{"Width":80,"Height":24}"#);
    }
}
