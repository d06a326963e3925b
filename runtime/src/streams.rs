//! A program that talks to a client: what goes in, what comes out, how it ends. The same for both kinds of container.
//!
//! Bounded channels on both sides, so that a client that does not read holds the program up and nothing piles up here.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

/// Pieces of input or output that may wait.
pub const PIECES_MAX: usize = 16;

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes of standard input.
    Data(Bytes),
    /// Standard input ends here.
    End,
    /// The client's terminal has this size now, in characters.
    Resize {
        /// Characters in a line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
}

/// What a program prints. With a terminal everything is standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
}

/// What is to be executed in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// The whole argv.
    pub argv: Vec<String>,
    /// The client will send input; otherwise standard input is empty.
    pub stdin: bool,
    /// The program gets a terminal.
    pub tty: bool,
}

/// A program with its streams.
pub struct Session {
    /// The client's side of standard input. Dropping it says that the client is gone.
    pub input: mpsc::Sender<Input>,
    /// Ends when the program has closed its outputs.
    pub output: mpsc::Receiver<Output>,
    /// The program's exit code. To be awaited beside the output, which must be read for the program to go on.
    pub exit: BoxFuture<'static, Result<i32, SessionError>>,
}

/// The program's side of a [`Session`].
pub(crate) struct Far {
    /// What the client sends; closed when the client is gone.
    pub(crate) input: mpsc::Receiver<Input>,
    /// To the client; closed when the client wants no more.
    pub(crate) output: mpsc::Sender<Output>,
    /// To be told once, when it is over.
    pub(crate) exit: oneshot::Sender<Result<i32, SessionError>>,
}

/// Both sides of a new session.
pub(crate) fn pair() -> (Session, Far) {
    let (to_program, input) = mpsc::channel(PIECES_MAX);
    let (output, from_program) = mpsc::channel(PIECES_MAX);
    let (exit, told) = oneshot::channel();
    let lost = || Err(SessionError::Broken("nobody said how it ended".into()));
    let exit_of = async move { told.await.unwrap_or_else(|_| lost()) };
    let session = Session { input: to_program, output: from_program, exit: exit_of.boxed() };
    (session, Far { input, output, exit })
}

/// Why a session ended without an exit code.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The container ended, or its engine did.
    #[error("the container ended: {0}")]
    Ended(String),
    /// The engine broke the session off.
    #[error("the session broke off: {0}")]
    Broken(String),
}
