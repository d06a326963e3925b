//! A running container, whichever runtime has it.
//!
//! The acts that pods, probes and calls need; what only one runtime can do (answering HTTP in process) is asked of that
//! runtime's own type.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use runtime::docker::DockerContainer;
use runtime::logs::{LogFile, ReadOptions, read};
use runtime::{ExecError, ExecOptions, Exit, Session, Shape, Usage};
use std::io;

/// A running container. Clones are the same one.
#[derive(Clone)]
pub enum Guest {
    /// A program in this process.
    Wasm(runtime::Container),
    /// A container of Docker.
    Docker(DockerContainer),
}

impl Guest {
    /// Waits for the end. Any number may wait.
    pub async fn exited(&self) -> Exit {
        match self {
            Self::Wasm(guest) => guest.exited().await,
            Self::Docker(guest) => guest.exited().await,
        }
    }

    /// Asks it to end: by its stop signal, or, an HTTP component, by giving it no more requests. WASI has no signals: what
    /// SIGTERM does to a program without a handler happens to a command at once.
    pub fn stop(&self) {
        match self {
            Self::Wasm(guest) if guest.program().shape() == Shape::Http => guest.stop(),
            Self::Wasm(guest) => guest.kill(),
            Self::Docker(guest) => guest.stop(),
        }
    }

    /// Ends it, whatever it does.
    pub fn kill(&self) {
        match self {
            Self::Wasm(guest) => guest.kill(),
            Self::Docker(guest) => guest.kill(),
        }
    }

    /// Runs a program in it.
    pub async fn exec(&self, options: ExecOptions) -> Result<Session, ExecError> {
        match self {
            Self::Wasm(guest) => guest.exec(options).await,
            Self::Docker(guest) => guest.exec(options).await,
        }
    }

    /// Its own streams from now on.
    pub async fn attach(&self, stdin: bool) -> Result<Session, ExecError> {
        match self {
            Self::Wasm(guest) => guest.attach(stdin).await,
            Self::Docker(guest) => guest.attach(stdin).await,
        }
    }

    /// What it uses now; `None` when its engine cannot say.
    pub async fn usage(&self) -> Option<Usage> {
        match self {
            Self::Wasm(guest) => Some(guest.usage()),
            Self::Docker(guest) => guest.usage().await,
        }
    }

    /// The end of its log, cut to whole characters.
    pub async fn log_tail(&self, log: Option<&LogFile>, lines: u64, bytes_max: usize) -> String {
        let options = ReadOptions { tail_lines: Some(lines), ..ReadOptions::default() };
        let stream: Option<BoxStream<'static, io::Result<Bytes>>> = match (self, log) {
            (Self::Docker(guest), _) => guest.logs(options, true, true).await.ok(),
            (Self::Wasm(_), Some(log)) => {
                let (dir, instance) = log.place();
                let opened = tokio::task::spawn_blocking(move || read(&dir, instance, options, None)).await;
                opened.ok().and_then(Result::ok).map(|stream| stream.boxed())
            }
            (Self::Wasm(_), None) => None,
        };
        let mut tail: Vec<u8> = Vec::new();
        let Some(mut stream) = stream else { return String::new() };
        while let Some(Ok(piece)) = stream.next().await {
            tail.extend_from_slice(&piece);
            let surplus = tail.len().saturating_sub(bytes_max);
            tail.drain(..surplus);
        }
        String::from_utf8_lossy(&tail).trim_start_matches(char::REPLACEMENT_CHARACTER).to_owned()
    }
}
