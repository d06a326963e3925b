//! One forwarded connection: the bytes of a port of a pod over one WebSocket.
//!
//! Two channels, data and error; the first message of each only repeats the port. V4 of the protocol cannot say that one
//! direction has ended, V5 can; a server that speaks V4 only is left alone once our side has ended and its side went quiet.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::super::client::{Client, with_query};
use super::super::failure::{Failure, Result, fail};
use super::{CLOSE_CHANNEL, PING_EVERY, V4, V5, open};

const DATA: u8 = 0;
const ERROR: u8 = 1;
/// How much is read from the local side at once.
const PIECE_BYTES: usize = 32 << 10;
/// How long a server that cannot be told of our end may be silent before the connection is closed.
const SILENCE: Duration = Duration::from_secs(5);

/// Carries the bytes of one local connection to a port of the pod and back, until both directions have ended.
pub async fn forward<S>(client: &Client, pod_path: &str, port: u16, local: S) -> Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let path = with_query(pod_path, &[("ports", port.to_string())]);
    let socket = open(client, &path, &[V5, V4]).await?;
    let can_close = socket.protocol == V5;
    let (mut sender, mut messages) = socket.messages.split();
    let (mut read, mut write) = tokio::io::split(local);
    let (ended, mut local_ended) = tokio::sync::watch::channel(false);
    let out = async move {
        let mut ping = tokio::time::interval(PING_EVERY);
        ping.reset();
        let mut buffer = vec![0; PIECE_BYTES + 1];
        buffer[0] = DATA;
        let mut is_open = true;
        loop {
            let message = tokio::select! {
                count = read.read(&mut buffer[1..]), if is_open => match count {
                    Ok(count) if count > 0 => Message::Binary(Bytes::copy_from_slice(&buffer[..=count])),
                    _ => {
                        is_open = false;
                        ended.send_replace(true);
                        if !can_close {
                            continue;
                        }
                        Message::Binary(Bytes::from_static(&[CLOSE_CHANNEL, DATA]))
                    }
                },
                _ = ping.tick() => Message::Ping(Bytes::new()),
            };
            if sender.send(message).await.is_err() {
                return std::future::pending::<std::convert::Infallible>().await;
            }
        }
    };
    let back = async move {
        let mut announced = [false; 2];
        let mut is_half_closed = false;
        loop {
            let quiet = async {
                // Nobody is given up on who may still have something to say.
                if (can_close && !is_half_closed) || local_ended.wait_for(|ended| *ended).await.is_err() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(SILENCE).await;
            };
            let message = tokio::select! {
                message = messages.next() => message,
                () = quiet => return Ok(()),
            };
            match message {
                Some(Ok(Message::Binary(mut bytes))) if !bytes.is_empty() => {
                    let channel = bytes.split_to(1)[0];
                    match (channel, announced.get_mut(usize::from(channel))) {
                        (CLOSE_CHANNEL, _) if bytes.first() == Some(&DATA) => {
                            is_half_closed = true;
                            if write.shutdown().await.is_err() {
                                return Ok(());
                            }
                        }
                        (_, Some(seen)) if !*seen => *seen = true,
                        (DATA, _) if write.write_all(&bytes).await.is_err() => return Ok(()),
                        (DATA, _) => {}
                        (ERROR, _) if !bytes.is_empty() => {
                            return fail(String::from_utf8_lossy(&bytes).into_owned());
                        }
                        _ => {}
                    }
                }
                Some(Ok(Message::Close(_))) | None => {
                    drop(write.shutdown().await);
                    return Ok(());
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Failure::Text(error.to_string())),
            }
        }
    };
    tokio::select! {
        outcome = back => outcome,
        never = out => match never {},
    }
}
