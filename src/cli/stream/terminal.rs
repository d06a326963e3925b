//! The terminal at our end: raw while a remote program has it, and put back on every way out; its size; what is typed.

use std::io::Read;
use std::os::fd::AsFd;

use bytes::Bytes;
use rustix::termios::{self, OptionalActions, Termios};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// How much of stdin is read at once.
const PIECE_BYTES: usize = 32 << 10;
/// How many pieces of stdin wait for the network.
const PIECES_MAX: usize = 4;

/// Columns and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters per line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// Whether stdin is a terminal.
pub fn is_terminal() -> bool {
    termios::isatty(std::io::stdin())
}

/// The size of the terminal that output goes to; none if there is none.
pub fn size() -> Option<Size> {
    let ask = |fd: std::os::fd::BorrowedFd<'_>| termios::tcgetwinsize(fd).ok();
    let size = ask(std::io::stdout().as_fd()).or_else(|| ask(std::io::stdin().as_fd()))?;
    Some(Size { columns: size.ws_col, rows: size.ws_row })
}

/// A terminal in raw mode; dropping it puts the old mode back.
pub struct Raw {
    saved: Termios,
}

impl Raw {
    /// Makes stdin's terminal raw; none if it is no terminal or refuses.
    pub fn enter() -> Option<Raw> {
        let stdin = std::io::stdin();
        let saved = termios::tcgetattr(&stdin).ok()?;
        let mut raw = saved.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Raw { saved })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nobody is left to tell when the terminal itself is gone.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.saved);
    }
}

/// Waits for a signal that would end the process without putting the terminal back.
pub async fn killed() {
    let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
    let mut waits: Vec<_> = signals
        .into_iter()
        .filter_map(|kind| signal(kind).ok())
        .map(|mut signal| {
            Box::pin(async move {
                signal.recv().await;
            })
        })
        .collect();
    if waits.is_empty() {
        return std::future::pending().await;
    }
    futures::future::select_all(waits.drain(..)).await;
}

/// The terminal's size now and after each change. `redraw` begins with a size one larger, so that a program which was there
/// before us draws its screen again.
pub fn sizes(redraw: bool) -> mpsc::Receiver<Size> {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
        if let Some(size) = size().filter(|_| redraw) {
            let larger = Size { columns: size.columns.saturating_add(1), rows: size.rows.saturating_add(1) };
            if sender.send(larger).await.is_err() {
                return;
            }
        }
        loop {
            if let Some(size) = size()
                && sender.send(size).await.is_err()
            {
                return;
            }
            tokio::select! {
                more = changed.recv() => if more.is_none() { return },
                () = sender.closed() => return,
            }
        }
    });
    receiver
}

/// Stdin as it is read, in a thread of its own: a read cannot be called off, and must not keep the process from ending.
pub fn stdin() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if sender.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}
