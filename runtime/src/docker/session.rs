//! A client's streams to a container: executions and attaching.

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::connect::Ask;
use super::container::DockerContainer;
use super::error::{Cause, cause, chain};
use super::frames::Frames;
use crate::{ExecError, ExecOptions, Input, Output, PIECES_MAX, Session, SessionError};

/// Bytes of output read at once.
const CHUNK_BYTES: usize = 32 << 10;
/// Docker answers before the program runs, and a terminal can be resized only then.
const RESIZE_TRIES_MAX: u32 = 20;
const RESIZE_RETRY: Duration = Duration::from_millis(25);
/// How soon a program that has closed its outputs is asked again whether it has ended, at first and at last.
const EXIT_RETRY_MIN: Duration = Duration::from_millis(5);
const EXIT_RETRY_MAX: Duration = Duration::from_secs(1);

type Stream = TokioIo<hyper::upgrade::Upgraded>;

impl DockerContainer {
    /// Runs a program in the container. A program that does not exist is a session with exit code 126 or 127 and
    /// Docker's complaint as its output. The program goes on when the client leaves, as with the kubelet.
    pub async fn exec(&self, options: ExecOptions) -> Result<Session, ExecError> {
        if options.argv.is_empty() {
            return Err(ExecError::NoCommand { name: self.name().to_owned() });
        }
        let permit = self.permit()?;
        let path = format!("/containers/{}/exec", self.id());
        let body = json!({
            "AttachStdin": options.stdin, "AttachStdout": true, "AttachStderr": true,
            "Tty": options.tty, "Cmd": options.argv,
        });
        let ask = Ask { method: http::Method::POST, path: &path, query: &[], body: Some(body), upgrade: false };
        let response = self.docker().0.connection.ask(ask).await.map_err(|cause| self.exec_error(cause))?;
        let lost = |error: &dyn std::error::Error| self.exec_error(Cause::Lost(chain(error)));
        let body = http_body_util::Limited::new(response.into_body(), CHUNK_BYTES);
        let body = http_body_util::BodyExt::collect(body).await.map_err(|error| lost(error.as_ref()))?.to_bytes();
        let created: serde_json::Value = serde_json::from_slice(&body).map_err(|error| lost(&error))?;
        let id = created.get("Id").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();

        let start = json!({ "Detach": false, "Tty": options.tty });
        let what = What::Exec(id);
        let stream = self.upgrade(&what.path("start"), &[], Some(start)).await?;
        Ok(self.session(what, stream, options.tty, options.stdin, permit))
    }

    /// The container's own streams: its output from now on, and its input if `stdin` and it was started with one.
    pub async fn attach(&self, stdin: bool) -> Result<Session, ExecError> {
        let permit = self.permit()?;
        let stdin = stdin && self.stdin();
        let yes = || "1".to_owned();
        let mut query = vec![("stream", yes()), ("stdout", yes()), ("stderr", yes())];
        if stdin {
            query.push(("stdin", yes()));
        }
        let what = What::Container(self.id().to_owned());
        let stream = self.upgrade(&what.path("attach"), &query, None).await?;
        Ok(self.session(what, stream, self.tty(), stdin, permit))
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, ExecError> {
        if self.exit().is_some() {
            return Err(ExecError::NotRunning { name: self.name().to_owned() });
        }
        let permit = self.sessions().clone().try_acquire_owned();
        permit.map_err(|_| ExecError::Busy { name: self.name().to_owned() })
    }

    async fn upgrade(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: Option<serde_json::Value>,
    ) -> Result<Stream, ExecError> {
        let ask = Ask { method: http::Method::POST, path, query, body, upgrade: true };
        let response = self.docker().0.connection.ask(ask).await.map_err(|cause| self.exec_error(cause))?;
        let upgraded = hyper::upgrade::on(response).await;
        Ok(TokioIo::new(upgraded.map_err(|error| self.exec_error(Cause::Lost(chain(&error))))?))
    }

    fn exec_error(&self, cause: Cause) -> ExecError {
        let name = self.name().to_owned();
        match cause {
            // Gone, or not running.
            Cause::Refused(404 | 409, _) => ExecError::NotRunning { name },
            Cause::Refused(_, detail) | Cause::Lost(detail) => ExecError::Engine { name, detail },
        }
    }

    fn session(&self, what: What, stream: Stream, tty: bool, stdin: bool, permit: OwnedSemaphorePermit) -> Session {
        let (input, inputs) = mpsc::channel(PIECES_MAX);
        let (outputs, output) = mpsc::channel(PIECES_MAX);
        let (told, telling) = oneshot::channel();
        let container = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let exit = container.relay(what, stream, tty, stdin, inputs, outputs).await;
            let _ = told.send(exit);
        });
        let lost = |_| Err(SessionError::Broken("the node is stopping".to_owned()));
        Session { input, output, exit: telling.map(move |exit| exit.unwrap_or_else(lost)).boxed() }
    }

    async fn relay(
        &self,
        what: What,
        stream: Stream,
        tty: bool,
        stdin: bool,
        inputs: mpsc::Receiver<Input>,
        outputs: mpsc::Sender<Output>,
    ) -> Result<i32, SessionError> {
        let (reading, writing) = tokio::io::split(stream);
        let (sizes, sized) = watch::channel(None);
        {
            let reader = read(reading, tty, &outputs);
            let writer = write(writing, stdin, inputs, sizes);
            let resizer = self.resize(&what, sized);
            tokio::pin!(reader, writer, resizer);
            tokio::select! {
                end = &mut reader => end?,
                () = &mut writer => return Err(SessionError::Broken("the client is gone".to_owned())),
                () = &mut resizer => {}
            }
        }
        drop(outputs);
        match what {
            What::Exec(id) => self.exec_exit(&id).await,
            What::Container(_) => Ok(self.exited().await.code),
        }
    }

    /// Gives the terminal each new size; only the newest matters. Never ends.
    async fn resize(&self, what: &What, mut sizes: watch::Receiver<Option<(u16, u16)>>) {
        while sizes.changed().await.is_ok() {
            let Some((columns, rows)) = *sizes.borrow_and_update() else { continue };
            for _ in 0..RESIZE_TRIES_MAX {
                let query = [("w", columns.to_string()), ("h", rows.to_string())];
                let path = what.path("resize");
                let ask = Ask { method: http::Method::POST, path: &path, query: &query, body: None, upgrade: false };
                if self.docker().0.connection.ask(ask).await.is_ok() || sizes.has_changed().unwrap_or(true) {
                    break;
                }
                tokio::time::sleep(RESIZE_RETRY).await;
            }
        }
        std::future::pending().await
    }

    /// The exit code of an execution whose outputs have ended. It may run on.
    async fn exec_exit(&self, id: &str) -> Result<i32, SessionError> {
        let ended = |detail: String| Err(SessionError::Ended(detail));
        let mut retry = EXIT_RETRY_MIN;
        loop {
            let client = self.docker().0.connection.client();
            let client = client.map_err(|error| SessionError::Broken(error.to_string()))?;
            match client.inspect_exec(id).await.map_err(cause) {
                Ok(exec) if exec.running != Some(true) => {
                    let code = exec.exit_code.and_then(|code| i32::try_from(code).ok());
                    return code.map_or_else(|| ended("it was killed with its container".to_owned()), Ok);
                }
                Ok(_) => {}
                Err(Cause::Refused(_, detail)) => return ended(detail),
                Err(Cause::Lost(detail)) => return Err(SessionError::Broken(detail)),
            }
            if let Some(exit) = self.exit() {
                return ended(format!("exit code {}", exit.code));
            }
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(EXIT_RETRY_MAX);
        }
    }
}

/// Whose streams these are.
enum What {
    Exec(String),
    Container(String),
}

impl What {
    fn path(&self, act: &str) -> String {
        match self {
            What::Exec(id) => format!("/exec/{id}/{act}"),
            What::Container(id) => format!("/containers/{id}/{act}"),
        }
    }
}

/// Until the end of the output, or until nobody wants it.
async fn read(mut from: ReadHalf<Stream>, tty: bool, to: &mpsc::Sender<Output>) -> Result<(), SessionError> {
    let mut frames = Frames::new(tty);
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK_BYTES);
        let count = from.read_buf(&mut buffer).await.map_err(|error| SessionError::Broken(error.to_string()))?;
        if count == 0 {
            return Ok(());
        }
        let mut chunk: Bytes = buffer.split().freeze();
        while let Some(piece) = frames.next(&mut chunk) {
            if to.send(piece.output).await.is_err() {
                return Err(SessionError::Broken("the client is gone".to_owned()));
            }
        }
    }
}

/// Until the client is gone.
async fn write(
    to: WriteHalf<Stream>,
    stdin: bool,
    mut inputs: mpsc::Receiver<Input>,
    sizes: watch::Sender<Option<(u16, u16)>>,
) {
    let mut to = stdin.then_some(to);
    while let Some(input) = inputs.recv().await {
        let open = match (input, &mut to) {
            (Input::Resize { columns, rows }, _) => {
                sizes.send_replace(Some((columns, rows)));
                true
            }
            // A program that has closed its input is still to be heard.
            (Input::Data(bytes), Some(to)) => to.write_all(&bytes).await.is_ok() && to.flush().await.is_ok(),
            (Input::End, Some(to)) => {
                let _ = to.shutdown().await;
                false
            }
            (Input::Data(_) | Input::End, None) => true,
        };
        if !open {
            to = None;
        }
    }
}
