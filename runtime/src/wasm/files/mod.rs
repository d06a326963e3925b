//! Files in and out of a container: what `kubectl cp` executes, answered by the node, since a Wasm program has no `tar`
//! beside it.
//!
//! [`args`] says what was asked for, [`view`] which directory a path of the guest lies in, [`pack`] and [`unpack`] do the
//! work on a blocking thread, with bounded channels to the client. Every file is reached through the mount's own
//! directory handle, which nothing leads out of. Deliberately absent: compression, lists, anything `kubectl cp` does
//! not use; and the rest of the container's file system, because there is none.

mod args;
mod members;
mod pack;
mod unpack;
mod view;

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

pub(super) use self::args::{Act, recognise};
pub(super) use self::view::View;
use crate::streams::{Far, Input, Output, SessionError};

/// Pieces that wait between the blocking thread and the session.
const BRIDGE_PIECES_MAX: usize = 4;
/// Threads of the node that do this at once; more clients wait for their turn.
const COPIES_MAX: usize = 16;
static COPIES: Semaphore = Semaphore::const_new(COPIES_MAX);
/// Bytes of one piece of an archive.
const PIECE_BYTES: usize = 32 << 10;
/// The exit code of `tar` after an error.
const FAILED: i32 = 2;
/// As for a guest that was killed.
const KILLED: i32 = 137;
const PREVIOUS_ERRORS: &str = "tar: Exiting with failure status due to previous errors\n";

/// Carries an act out, up to its exit code; ends with the client and with the container.
pub(super) async fn run(act: Act, view: View, far: Far, over: CancellationToken) {
    let Far { mut input, output, exit } = far;
    let (to_client, mut printed) = mpsc::channel::<Output>(BRIDGE_PIECES_MAX);
    let (to_act, typed) = mpsc::channel::<Bytes>(BRIDGE_PIECES_MAX);
    let work = async {
        let turn = COPIES.acquire().await.map_err(|error| SessionError::Broken(error.to_string()))?;
        let acting = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let mut screen = Screen(to_client);
            blocking(act, &view, &mut screen, Typed { pieces: typed, piece: Bytes::new() })
        });
        while let Some(piece) = printed.recv().await {
            if output.send(piece).await.is_err() {
                return Ok(KILLED);
            }
        }
        acting.await.map_err(|error| SessionError::Broken(error.to_string()))
    };
    let client = async {
        let mut to_act = Some(to_act);
        while let Some(piece) = input.recv().await {
            match (piece, &to_act) {
                // An act that takes no more input is about to end.
                (Input::Data(bytes), Some(sender)) => drop(sender.send(bytes).await),
                (Input::End, _) => to_act = None,
                _ => {}
            }
        }
    };
    // Leaving the others behind closes their channels, which ends the thread.
    let code = tokio::select! {
        biased;
        () = over.cancelled() => Ok(KILLED),
        code = work => code,
        () = client => Ok(KILLED),
        () = output.closed() => Ok(KILLED),
    };
    drop(output);
    let _ = exit.send(code);
}

fn blocking(act: Act, view: &View, screen: &mut Screen, input: Typed) -> i32 {
    match act {
        Act::Test { kind, path } => i32::from(!view.is(kind, &path)),
        Act::Refused { text, code } => {
            screen.complain(&text);
            code
        }
        Act::Pack { paths, dir, skip_bytes } => {
            let archive = Archive { screen: screen.clone(), piece: Vec::new(), skip_bytes };
            ended(pack::pack(view, dir.as_deref(), &paths, archive, screen), screen)
        }
        Act::Unpack(options) => ended(unpack::unpack(view, &options, input, screen), screen),
    }
}

/// `Ok`: whether all went well; errors have been told. `Err`: no use going on.
fn ended(done: io::Result<bool>, screen: &mut Screen) -> i32 {
    match done {
        Ok(true) => 0,
        Ok(false) => {
            screen.complain(PREVIOUS_ERRORS);
            FAILED
        }
        Err(error) => {
            screen.complain(&format!("tar: {}\ntar: Error is not recoverable: exiting now\n", words(&error)));
            FAILED
        }
    }
}

/// An error as programs print it.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// The client's screen, written to from a blocking thread.
#[derive(Clone)]
struct Screen(mpsc::Sender<Output>);

impl Screen {
    /// Standard error. A client that is gone is noticed where the archive is written or read.
    fn complain(&mut self, text: &str) {
        let _ = self.0.blocking_send(Output::Stderr(Bytes::copy_from_slice(text.as_bytes())));
    }
}

/// An archive on its way to the client, without its first bytes where it goes on after a break.
struct Archive {
    screen: Screen,
    piece: Vec<u8>,
    skip_bytes: u64,
}

impl Write for Archive {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let skipped = usize::try_from(self.skip_bytes).unwrap_or(usize::MAX).min(bytes.len());
        self.skip_bytes -= skipped as u64;
        self.piece.extend_from_slice(&bytes[skipped..]);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() {
            return Ok(());
        }
        self.screen.0.blocking_send(Output::Stdout(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// What the client sends, read from a blocking thread.
struct Typed {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Typed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let taken = self.piece.split_to(self.piece.len().min(into.len()));
        into[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

/// For [`View`]: a directory of the node shown to the guest.
type Root = Arc<cap_std::fs::Dir>;
