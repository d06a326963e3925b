//! Images from somewhere nearer than a registry: what a node's master hands on.
//!
//! The origin says what a name stands for there; the bytes come by digest, are checked, and what has come of them stays on the
//! disk, so that a fetch that broke off goes on where it stopped, also in another process. Deliberately absent: how the origin
//! is reached.

use std::fmt;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::Inner;
use super::error::PullError;
use super::pull::{off_thread, pin, slot};
use super::registry::check;
use super::store::{Content, ImageConfig, Pin};
use crate::digest::hex;

/// The longest that the origin may think about a name.
const FIND_MAX: Duration = Duration::from_secs(10);
/// The longest that it may let wait for bytes.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Without any new byte for so long, a fetch is given up where nobody else has the image; what has come stays for the next.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// The same where a registry has it too.
pub(super) const PATIENCE_SHORT: Duration = Duration::from_secs(5);
/// Pauses between attempts, the first and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Pauses before another fetch of the same blob is taken for one that goes on.
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const LOCK_PAUSES_MAX: u32 = 60;
/// Bytes read from the disk at once.
const READ_BYTES: usize = 64 << 10;
/// Pieces between the origin and the disk.
const PIECES_MAX: usize = 16;

/// Where images come from before registries are asked.
pub trait Origin: Send + Sync + fmt::Debug {
    /// What a name, as in a pod, stands for there; none if it stands for nothing.
    fn find(&self, image: String) -> BoxFuture<'static, Result<Option<Offer>, OriginError>>;

    /// The bytes of the blob that the name stands for there, from the byte `from` on.
    fn read(&self, image: String, blob: String, from: u64) -> BoxFuture<'static, Result<OriginBytes, OriginError>>;
}

/// Bytes of an origin, in order.
pub type OriginBytes = BoxStream<'static, Result<Bytes, OriginError>>;

/// An image that an origin has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// `sha256:...` of what the name stands for.
    pub digest: String,
    /// 64 hexadecimal digits: SHA-256 of the bytes.
    pub blob: String,
    /// How many those are.
    pub bytes: u64,
    /// The origin decides what the name stands for; otherwise a registry does, and this is what it said once.
    pub imported: bool,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// What it is.
    pub content: Content,
}

/// Why an origin does not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// It is not reached now, or has others to serve.
    #[error("{0}")]
    Away(String),
    /// It has not got it.
    #[error("{0}")]
    Absent(String),
    /// Anything else; another try would end the same way.
    #[error("{0}")]
    Failed(String),
}

/// What the origin says of a name.
pub(super) async fn find(inner: &Inner, image: &str) -> Result<Option<Offer>, OriginError> {
    let Some(origin) = &inner.origin else { return Ok(None) };
    let slow = || Err(OriginError::Away("the master took too long to answer".into()));
    let offer = timeout(FIND_MAX, origin.find(image.to_owned())).await.unwrap_or_else(|_| slow())?;
    match offer {
        Some(offer) if !is_blob(&offer.blob) => Err(OriginError::Failed("the master's answer has no digest".into())),
        offer => Ok(offer),
    }
}

fn is_blob(blob: &str) -> bool {
    blob.len() == 64 && blob.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Brings a blob of the origin's here, unless it is; the same blob once at a time. `bytes_max` bounds its size, `patience` is how long the origin may be
/// away meanwhile.
pub(super) async fn fetch(
    inner: &Arc<Inner>,
    image: &str,
    blob: &str,
    bytes_max: u64,
    patience: Duration,
) -> Result<(Pin, u64), PullError> {
    let slot = slot(inner, &format!("sha256:{blob}"));
    let _turn = slot.turn.lock().await;
    if let Some(pin) = pin(inner, blob).await? {
        let bytes = size(inner, blob).await?;
        return Ok((pin, bytes));
    }
    let Some(origin) = &inner.origin else { return Err(PullError::NotFound { what: format!("sha256:{blob}") }) };
    let mut partial = {
        let (inner, blob) = (inner.clone(), blob.to_owned());
        off_thread(move || Partial::open(&inner, &blob, bytes_max)).await?
    };
    let (mut moved, mut pause) = (Instant::now(), PAUSES.0);
    loop {
        let before = partial.bytes;
        let (kept, ended) = read(origin.read(image.to_owned(), blob.to_owned(), before), partial).await?;
        partial = kept;
        if partial.bytes > before {
            (moved, pause) = (Instant::now(), PAUSES.0);
        }
        match ended {
            Ok(()) => break,
            Err(OriginError::Absent(what)) => return Err(PullError::NotFound { what }),
            Err(OriginError::Away(_)) if moved.elapsed() < patience => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
            Err(error) => return Err(PullError::Origin { detail: error.to_string(), bytes: partial.bytes }),
        }
    }
    let (inner, blob) = (inner.clone(), blob.to_owned());
    off_thread(move || partial.finish(&inner, &blob)).await
}

/// Takes what the origin sends until that ends.
async fn read(
    opening: BoxFuture<'static, Result<OriginBytes, OriginError>>,
    mut partial: Partial,
) -> Result<(Partial, Result<(), OriginError>), PullError> {
    let stalled = || OriginError::Away("the master sends nothing".into());
    let mut pieces = match timeout(STALL_MAX, opening).await.unwrap_or_else(|_| Err(stalled())) {
        Ok(pieces) => pieces,
        Err(error) => return Ok((partial, Err(error))),
    };
    let (to_disk, mut from_origin) = mpsc::channel::<Bytes>(PIECES_MAX);
    let writing = tokio::task::spawn_blocking(move || {
        while let Some(piece) = from_origin.blocking_recv() {
            partial.take(&piece)?;
        }
        Ok(partial)
    });
    let ended = loop {
        match timeout(STALL_MAX, pieces.next()).await {
            Err(_) => break Err(stalled()),
            Ok(None) => break Ok(()),
            Ok(Some(Err(error))) => break Err(error),
            Ok(Some(Ok(piece))) => {
                // the disk's own error is told below
                if to_disk.send(piece).await.is_err() {
                    break Ok(());
                }
            }
        }
    };
    drop(to_disk);
    let partial = writing.await.map_err(|error| PullError::malformed("the fetch", error))??;
    Ok((partial, ended))
}

async fn size(inner: &Arc<Inner>, blob: &str) -> Result<u64, PullError> {
    let path = inner.store.blob_path(blob);
    let found = tokio::fs::metadata(path).await.map_err(PullError::disk("cannot read the image store"))?;
    Ok(found.len())
}

/// What has come of a blob.
struct Partial {
    file: NamedTempFile,
    hasher: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl Partial {
    fn open(inner: &Inner, blob: &str, bytes_max: u64) -> Result<Partial, PullError> {
        let disk = || PullError::disk("cannot write into the image store");
        let mut pauses = LOCK_PAUSES_MAX;
        let mut file = loop {
            match inner.store.partial(blob) {
                // a fetch that was given up just now ends in a moment
                Err(error) if error.kind() == ErrorKind::WouldBlock && pauses > 0 => {
                    pauses -= 1;
                    std::thread::sleep(LOCK_PAUSE);
                }
                opened => break opened.map_err(disk())?,
            }
        };
        let mut hasher = Sha256::new();
        let (mut bytes, mut buffer) = (0, vec![0; READ_BYTES]);
        loop {
            let read = file.as_file_mut().read(&mut buffer).map_err(disk())?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            bytes += read as u64;
        }
        if bytes <= bytes_max {
            return Ok(Partial { file, hasher, bytes, bytes_max });
        }
        file.as_file().set_len(0).map_err(disk())?;
        file.as_file_mut().seek(SeekFrom::Start(0)).map_err(disk())?;
        Ok(Partial { file, hasher: Sha256::new(), bytes: 0, bytes_max })
    }

    fn take(&mut self, piece: &[u8]) -> Result<(), PullError> {
        if self.bytes + piece.len() as u64 > self.bytes_max {
            self.file.disable_cleanup(false);
            return Err(PullError::TooBig { what: "the master's image".into(), bytes_max: self.bytes_max });
        }
        self.file.as_file_mut().write_all(piece).map_err(PullError::disk("cannot write into the image store"))?;
        self.hasher.update(piece);
        self.bytes += piece.len() as u64;
        Ok(())
    }

    fn finish(mut self, inner: &Inner, blob: &str) -> Result<(Pin, u64), PullError> {
        // either it becomes the blob, or it is of no use
        self.file.disable_cleanup(false);
        let found = hex(&self.hasher.finalize());
        check("the master's image", &format!("sha256:{blob}"), &format!("sha256:{found}"))?;
        Ok((inner.store.commit(self.file, blob)?, self.bytes))
    }
}
