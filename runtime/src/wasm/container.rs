//! Containers: a program, its sandbox, its account, and how it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use futures::FutureExt;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::WasmConfig;
use super::account::Account;
use super::attached::Attached;
use super::command::{self, End};
use super::console::Console;
use super::host::Sandbox;
use super::http::Server;
use super::program::{Code, Program, Shape};
use super::stdio::Outlets;
use crate::spec::{Body, ContainerSpec, Exit, ExitReason, HandleError, Network, StartError, Usage};

/// Executions beside the container's own at once.
const EXECS_MAX: usize = 8;

/// One container, running or ended. Clones are the same container; dropping them does not end it.
#[derive(Clone)]
pub struct Container(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) name: String,
    pub(super) program: Program,
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) account: Arc<Account>,
    started_at: Timestamp,
    pub(super) exit: watch::Sender<Option<Exit>>,
    pub(super) killed: CancellationToken,
    /// Killed or come to its end: nothing beside it goes on.
    pub(super) over: CancellationToken,
    stopping: AtomicBool,
    pub(super) execs: Arc<Semaphore>,
    pub(super) attached: Arc<Attached>,
    /// Its standard input, where it has one.
    pub(super) console: Option<Console>,
    /// The first client to leave closes the input.
    pub(super) stdin_once: bool,
    server: Option<Server>,
    pub(super) commands: Handle,
}

impl Container {
    pub(super) fn start(spec: ContainerSpec, config: &WasmConfig) -> Result<Container, StartError> {
        let program = spec.program.clone();
        if program.0.p3() && !spec.p3 {
            return Err(StartError::P3Off { program: program.0.file.clone() });
        }
        let attached = Arc::new(Attached::default());
        let outlets = Outlets::logged(&spec.stdout, &spec.stderr, &attached, spec.tty);
        let screen = spec.tty.then(|| outlets.stdout.clone());
        let console = (spec.stdin && program.shape() != Shape::Http).then(|| Console::new(screen));
        let sandbox = Arc::new(Sandbox::new(&spec, console.as_ref().map(Console::stdin), outlets)?);
        let clock = program.0.parts.clock.clone();
        let account = Arc::new(Account::new(clock, spec.cpu_millis_max, spec.memory_bytes_max));
        let killed = CancellationToken::new();
        let server = match &program.0.code {
            Code::Component { http: Some(http), .. } => Some(Server::new(
                http.clone(),
                program.0.engine().clone(),
                sandbox.clone(),
                account.clone(),
                killed.clone(),
                spec.reuse_requests_max,
                config,
            )),
            _ => None,
        };
        let inner = Arc::new(Inner {
            name: spec.name,
            program,
            sandbox,
            account,
            started_at: Timestamp::now(),
            exit: watch::Sender::new(None),
            over: killed.child_token(),
            killed,
            stopping: AtomicBool::new(false),
            execs: Arc::new(Semaphore::new(EXECS_MAX)),
            attached,
            console,
            stdin_once: spec.stdin_once,
            server,
            commands: config.commands.clone(),
        });
        if inner.server.is_none() {
            config.commands.spawn(inner.clone().run());
        }
        Ok(Container(inner))
    }

    /// Waits for the end. Any number may wait.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.0.exit.subscribe();
        loop {
            if let Some(exit) = exit.borrow_and_update().clone() {
                return exit;
            }
            if exit.changed().await.is_err() {
                // The sender lives in `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The end, if it has come.
    pub fn exit(&self) -> Option<Exit> {
        self.0.exit.borrow().clone()
    }

    /// When it was started.
    pub fn started_at(&self) -> Timestamp {
        self.0.started_at
    }

    /// HTTP: takes no new requests and ends (code 0) when the running ones have. Commands: WASI has no signals, so there
    /// is no SIGTERM a program could catch and nothing happens here; the caller kills, at once or after its grace
    /// period.
    pub fn stop(&self) {
        if self.0.server.is_some() && !self.0.stopping.swap(true, SeqCst) {
            let inner = self.0.clone();
            self.0.commands.spawn(async move {
                if let Some(server) = &inner.server {
                    tokio::select! {
                        () = server.drained() => inner.ended(End::code(0)),
                        () = inner.killed.cancelled() => {}
                    }
                }
            });
        }
    }

    /// Ends it within a tick, whatever it does, with its executions. Exit code 137.
    pub fn kill(&self) {
        self.0.stopping.store(true, SeqCst);
        self.0.killed.cancel();
        if let Some(server) = &self.0.server {
            server.forget();
            self.0.ended(End::killed());
        }
    }

    /// Has an HTTP component answer a request, on the caller's own task up to the response's head. Whoever drops the
    /// future, or the response's body before its end, ends the guest.
    pub async fn handle(&self, request: http::Request<Body>) -> Result<http::Response<Body>, HandleError> {
        let server = self.0.server.as_ref().ok_or(HandleError::NotHttp)?;
        if self.0.stopping.load(SeqCst) {
            return Err(HandleError::Stopping);
        }
        server.handle(request).await
    }

    /// CPU time and memory, now.
    pub fn usage(&self) -> Usage {
        Usage { cpu_ns: self.0.account.cpu_ns(), memory_bytes: self.0.account.memory_bytes() }
    }

    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The program it runs.
    pub fn program(&self) -> &Program {
        &self.0.program
    }

    /// The network it was given.
    pub fn network(&self) -> &Arc<dyn Network> {
        &self.0.sandbox.network
    }
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container").field("name", &self.0.name).field("exit", &self.exit()).finish()
    }
}

impl Inner {
    async fn run(self: Arc<Self>) {
        let run = command::run(self.program.0.clone(), self.sandbox.clone(), self.account.clone());
        // A bug of ours in one guest's run must not leave its pod running for ever.
        let run = std::panic::AssertUnwindSafe(run).catch_unwind();
        let interrupted = async {
            match &self.console {
                Some(console) => console.interrupted().await,
                None => std::future::pending().await,
            }
        };
        let end = tokio::select! {
            biased;
            () = self.killed.cancelled() => End::killed(),
            () = interrupted => End::interrupted(),
            end = run => end.unwrap_or_else(|_| panicked(&self.name, &"panic")),
        };
        self.ended(end);
    }

    fn ended(&self, end: End) {
        let exit = exit_of(end, self.started_at);
        self.exit.send_if_modified(|old| match old {
            Some(_) => false,
            None => {
                *old = Some(exit);
                true
            }
        });
        self.over.cancel();
        self.attached.close();
    }
}

fn exit_of(end: End, started_at: Timestamp) -> Exit {
    Exit { code: end.code, reason: end.reason, message: end.message, started_at, finished_at: Timestamp::now() }
}

pub(super) fn panicked(name: &str, error: &dyn std::fmt::Display) -> End {
    tracing::error!(container = name, %error, "the host failed while running a guest");
    End { code: command::TRAPPED, reason: ExitReason::Error, message: "the host failed while running it".into() }
}
