//! How long `exec` and `logs` take, of a Wasm container and, where there is one, of a Docker container.
//!
//! `exec` is a WebSocket as `coracle` opens it, on a connection whose TLS is done, from the request to the exit status.
//! `logs` is one GET on an open connection, of a container that has said one line.

use crate::client::{Access, Client};
use crate::cluster::{Cluster, PODS, root};
use crate::{engine, line, summary};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const RUNS: usize = 50;
/// The channel on which the end is told.
const STATUS_CHANNEL: u8 = 3;
/// An empty ping, masked with zeros: `coracle`'s own client says at once that it listens.
const PING: [u8; 6] = [0x89, 0x80, 0, 0, 0, 0];
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Wasm without privilege; then, where that is possible, Docker.
pub async fn measure() -> Result<()> {
    let probe = root().join("tests/it/guests/probe.wasm").canonicalize()?;
    let wasm = json!({"name": "main", "image": format!("file://{}", probe.display()), "args": ["tick"]});
    let (cluster, mut client) = Cluster::start().await?;
    both(&cluster, &mut client, "Wasm", wasm, &["probe", "args"]).await?;
    drop((cluster, client));
    let Some(image) = engine::image()? else { return Ok(()) };
    let (cluster, mut client) = Cluster::start_privileged().await?;
    let docker = json!({"name": "main", "image": image.name, "command": ["sh", "-c", "echo tick; sleep 1000"]});
    both(&cluster, &mut client, "Docker", docker, &["true"]).await
}

async fn both(cluster: &Cluster, client: &mut Client, kind: &str, container: Value, command: &[&str]) -> Result<()> {
    let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [container]});
    client.create(PODS, &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec})).await?;
    cluster.pods(client, true).await?;
    let access = cluster.access()?;
    let (mut execs, mut logs) = (Vec::new(), Vec::new());
    // the first of each is not counted
    for _ in 0..=RUNS {
        execs.push(exec(&access, command).await?);
        let begun = Instant::now();
        let log = client.get(&format!("{PODS}/one/log?tailLines=1")).await?;
        logs.push(begun.elapsed());
        if !log.to_string().contains("tick") {
            bail!("the log is {log}");
        }
    }
    line(&format!("{kind}: exec to exit status"), summary(execs.split_off(1)));
    line(&format!("{kind}: logs, the last line"), summary(logs.split_off(1)));
    Ok(())
}

/// One execution; the time until its exit status is here.
async fn exec(access: &Access, command: &[&str]) -> Result<Duration> {
    let mut stream = access.raw().await?;
    let words: Vec<String> = command.iter().map(|word| format!("command={word}")).collect();
    let request = format!(
        "GET {PODS}/one/exec?{}&stdout=true&stderr=true HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: v5.channel.k8s.io\r\n\r\n",
        words.join("&")
    );
    let begun = Instant::now();
    stream.write_all(request.as_bytes()).await?;
    let (mut answer, mut has_pinged) = (Vec::new(), false);
    loop {
        if stream.read_buf(&mut answer).await? == 0 || answer.len() > ANSWER_BYTES_MAX {
            bail!("the answer ends without a status: {}", String::from_utf8_lossy(&answer));
        }
        let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        if !std::mem::replace(&mut has_pinged, true) {
            stream.write_all(&PING).await?;
        }
        if let Some(status) = status(&answer[head + 4..]) {
            let time = begun.elapsed();
            if !status.contains("Success") {
                bail!("{status}");
            }
            return Ok(time);
        }
    }
}

/// What the status channel said, when it has come whole. A server's frames are not masked.
fn status(mut frames: &[u8]) -> Option<String> {
    loop {
        let (head, rest) = frames.split_at_checked(2)?;
        let (length, rest) = match head[1] {
            126 => {
                let (length, rest) = rest.split_at_checked(2)?;
                (usize::from(u16::from_be_bytes(length.try_into().ok()?)), rest)
            }
            127 => return Some("a frame of more than 64 KiB".to_owned()),
            length => (usize::from(length), rest),
        };
        let (payload, rest) = rest.split_at_checked(length)?;
        if let [STATUS_CHANNEL, status @ ..] = payload {
            return Some(String::from_utf8_lossy(status).into_owned());
        }
        frames = rest;
    }
}
