//! Clients of a running container: executions beside it, and those attached to its own streams.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::command::{self, End};
use super::console::{Console, gone};
use super::container::{Container, Inner, panicked};
use super::files::{self, View};
use super::host::Sandbox;
use super::program::Code;
use super::stdio::Outlets;
use crate::spec::ExecError;
use crate::streams::{ExecOptions, Far, Session, SessionError, pair};

impl Container {
    /// Runs the program once more beside itself, in the same sandbox, with other arguments. What `kubectl cp` executes
    /// (`tar`, `test`) is answered by the node instead, for HTTP components as well.
    ///
    /// The guest waits for a client that does not read, and ends when the client is gone; a container that ends takes
    /// its executions with it (137).
    pub async fn exec(&self, options: ExecOptions) -> Result<Session, ExecError> {
        let inner = &self.0;
        let name = || inner.name.clone();
        if options.argv.is_empty() {
            return Err(ExecError::NoCommand { name: name() });
        }
        if inner.over.is_cancelled() {
            return Err(ExecError::NotRunning { name: name() });
        }
        let act = files::recognise(&options.argv);
        if act.is_none() && matches!(&inner.program.0.code, Code::Component { run: None, .. }) {
            return Err(ExecError::NotACommand { name: name() });
        }
        let permit = inner.execs.clone().try_acquire_owned().map_err(|_| ExecError::Busy { name: name() })?;
        let (session, far) = pair();
        let inner = inner.clone();
        let commands = inner.commands.clone();
        commands.spawn(async move {
            match act {
                Some(act) => {
                    let mounts = inner.sandbox.mounts.iter().map(|(mount, _)| mount);
                    let view = View::new(mounts, inner.sandbox.working_dir.as_deref());
                    files::run(act, view, far, inner.over.clone()).await;
                }
                None => run(inner, options, far).await,
            }
            drop(permit);
        });
        Ok(session)
    }

    /// The container's own output from now on, and, with `stdin`, its standard input if it was started with one;
    /// otherwise what the client sends is dropped. The session ends with the container, or when the client is gone.
    pub async fn attach(&self, stdin: bool) -> Result<Session, ExecError> {
        let inner = self.0.clone();
        if inner.over.is_cancelled() {
            return Err(ExecError::NotRunning { name: inner.name.clone() });
        }
        let seat = inner.attached.join().ok_or_else(|| ExecError::Busy { name: inner.name.clone() })?;
        let (session, far) = pair();
        let Far { mut input, output, exit } = far;
        let commands = inner.commands.clone();
        commands.spawn(async move {
            let show = async {
                while let Some(piece) = seat.next().await {
                    if output.send(piece).await.is_err() {
                        return;
                    }
                }
            };
            let take = async {
                match &inner.console {
                    Some(console) if stdin => {
                        let once = || {
                            if inner.stdin_once {
                                console.end();
                            }
                        };
                        console.serve(&mut input, once).await;
                        once();
                    }
                    _ => gone(&mut input).await,
                }
            };
            let left = tokio::select! {
                () = show => output.is_closed(),
                () = take => true,
            };
            if left
                && stdin
                && inner.stdin_once
                && let Some(console) = &inner.console
            {
                console.end();
            }
            let ended = inner.exit.borrow().as_ref().map(|exit| exit.code);
            let _ = exit.send(ended.ok_or_else(|| SessionError::Broken("the client left".into())));
        });
        Ok(session)
    }
}

/// One execution from its start to its end.
async fn run(inner: Arc<Inner>, options: ExecOptions, far: Far) {
    let Far { mut input, output, exit } = far;
    let outlets = Outlets::client(&output, options.tty);
    let screen = options.tty.then(|| outlets.stdout.clone());
    let console = (options.stdin || options.tty).then(|| Console::new(screen));
    if let Some(console) = &console
        && !options.stdin
    {
        console.end();
    }
    let sandbox = Arc::new(Sandbox {
        args: Arc::new(options.argv),
        stdin: console.as_ref().map(Console::stdin),
        outlets,
        ..(*inner.sandbox).clone()
    });
    let guest = command::run(inner.program.0.clone(), sandbox, inner.account.clone());
    let guest = AbortOnDropHandle::new(inner.commands.spawn(guest));
    let client = async {
        match &console {
            Some(console) => {
                tokio::select! {
                    () = console.serve(&mut input, || console.end()) => End::killed(),
                    () = console.interrupted() => End::interrupted(),
                }
            }
            None => {
                gone(&mut input).await;
                End::killed()
            }
        }
    };
    let end = tokio::select! {
        biased;
        () = inner.over.cancelled() => End::killed(),
        end = guest => end.unwrap_or_else(|error| panicked(&inner.name, &error)),
        end = client => end,
        () = output.closed() => End::killed(),
    };
    // The last sender: what was printed comes before the end of the output, and that before the exit code.
    drop((console, output));
    let _ = exit.send(Ok(end.code));
}
