//! A guest's standard input and who types it: a client of an execution, or whoever is attached to a container.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::pipe::{Pipe, Stdin};
use super::stdio::Outlet;
use super::terminal::Line;
use crate::streams::Input;

/// How often a client is looked after whose input the guest does not take.
const STUCK_POLL: Duration = Duration::from_secs(1);

/// One guest's input.
pub(super) struct Console {
    pipe: Arc<Pipe>,
    terminal: Option<Terminal>,
    interrupted: CancellationToken,
}

struct Terminal {
    line: Mutex<Line>,
    screen: Outlet,
}

impl Console {
    /// `screen`: where a terminal shows what is typed; `None` is a plain pipe.
    pub(super) fn new(screen: Option<Outlet>) -> Console {
        let terminal = screen.map(|screen| Terminal { line: Mutex::default(), screen });
        Console { pipe: Arc::default(), terminal, interrupted: CancellationToken::new() }
    }

    /// What the guest reads.
    pub(super) fn stdin(&self) -> Stdin {
        Stdin { pipe: self.pipe.clone(), terminal: self.terminal.is_some() }
    }

    /// Ctrl-C was typed.
    pub(super) async fn interrupted(&self) {
        self.interrupted.cancelled().await;
    }

    /// Nothing more will be typed.
    pub(super) fn end(&self) {
        self.pipe.end();
    }

    async fn typed(&self, bytes: Bytes) {
        let Some(terminal) = &self.terminal else { return self.pipe.push(bytes).await };
        let typed = terminal.line.lock().unwrap_or_else(PoisonError::into_inner).typed(&bytes);
        if !typed.echo.is_empty() {
            terminal.screen.show(&typed.echo).await;
        }
        // Never waits, so that Ctrl-C always arrives: what a program has no room for is lost, as on any terminal.
        self.pipe.try_push(typed.input.into());
        if typed.end {
            self.end();
        }
        if typed.interrupt {
            self.interrupted.cancel();
        }
    }

    /// Takes a client's input until the client is gone; `at_end` is what the end of its input means.
    pub(super) async fn serve(&self, input: &mut mpsc::Receiver<Input>, at_end: impl Fn()) {
        while let Some(piece) = input.recv().await {
            match piece {
                Input::Data(bytes) => {
                    let abandoned = async {
                        while !input.is_closed() {
                            tokio::time::sleep(STUCK_POLL).await;
                        }
                    };
                    tokio::select! {
                        biased;
                        () = self.typed(bytes) => {}
                        () = abandoned => return,
                    }
                }
                Input::End => at_end(),
                // WASI has no word for a window's size.
                Input::Resize { .. } => {}
            }
        }
    }
}

/// Waits until a client is gone whose input nobody wants.
pub(super) async fn gone(input: &mut mpsc::Receiver<Input>) {
    while input.recv().await.is_some() {}
}
