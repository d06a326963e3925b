//! What a node asks of its master: images, by name, and their bytes.
//!
//! An ask is answered with a stream of pieces; dropping it ends the ask. Deliberately absent: what a name stands for, and
//! who may have what (the server's).

use crate::Uplink;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

/// What a master answers, in the order it came; an error ends it.
pub type Pieces = BoxStream<'static, Result<Piece, AskError>>;

/// What a master is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// What an image's name stands for at the master: one [`Piece::Image`].
    Image {
        /// As a pod of the node has it.
        image: String,
    },
    /// The bytes of such an image: [`Piece::Bytes`], in order, to the end.
    Blob {
        /// As a pod of the node has it.
        image: String,
        /// [`MasterImage::blob`].
        blob: String,
        /// Bytes that the node has already.
        #[serde(default)]
        from: u64,
    },
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// What a name stands for.
    Image(Box<MasterImage>),
    /// Bytes of an image.
    Bytes(Bytes),
}

/// An image of the master's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MasterImage {
    /// `sha256:...` of what the name stands for.
    pub digest: String,
    /// 64 hexadecimal digits: SHA-256 of the bytes.
    pub blob: String,
    /// How many bytes those are.
    pub bytes: u64,
    /// It was imported: the master decides what the name stands for, and no registry.
    #[serde(default)]
    pub imported: bool,
    /// The image is for a container engine; otherwise it is a Wasm program.
    #[serde(default)]
    pub container: bool,
    /// How it wants to be run; both ends of the store know its form.
    #[serde(default)]
    pub config: Value,
}

/// Why a master did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The link is down.
    #[error("the master is not connected")]
    Disconnected,
    /// The master is older than the question.
    #[error("the master does not hand on images")]
    Unsupported,
    /// The master has no such image, or not these bytes of it.
    #[error("{0}")]
    NotFound(String),
    /// It is not this node's to ask for.
    #[error("{0}")]
    Forbidden(String),
    /// The master answers others; later it will answer this too.
    #[error("the master is busy")]
    Busy,
    /// The master tried and failed.
    #[error("{0}")]
    Failed(String),
}

/// An ask as the master gets it.
pub struct IncomingAsk {
    /// What is asked.
    pub ask: Ask,
    pub(crate) reply: oneshot::Sender<Result<Pieces, AskError>>,
}

impl IncomingAsk {
    /// Answers. A node that left is no error.
    pub fn answer(self, answer: Result<Pieces, AskError>) {
        drop(self.reply.send(answer));
    }
}

impl Uplink {
    /// Asks the master; answered when the answer begins.
    ///
    /// # Errors
    /// [`AskError`] says whether another try may help.
    pub async fn ask(&self, ask: Ask) -> Result<Pieces, AskError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(IncomingAsk { ask, reply }).await.map_err(|_| AskError::Disconnected)?;
        answer.await.map_err(|_| AskError::Disconnected)?
    }

    /// What an image's name stands for at the master.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn image(&self, image: &str) -> Result<MasterImage, AskError> {
        let mut pieces = self.ask(Ask::Image { image: image.to_owned() }).await?;
        match pieces.next().await {
            Some(Ok(Piece::Image(image))) => Ok(*image),
            Some(Err(error)) => Err(error),
            Some(Ok(Piece::Bytes(_))) | None => Err(strange()),
        }
    }

    /// The bytes of an image, from the byte `from` on.
    ///
    /// # Errors
    /// [`AskError`], here and in the stream
    pub async fn blob(
        &self,
        image: &str,
        blob: &str,
        from: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, AskError>>, AskError> {
        let ask = Ask::Blob { image: image.to_owned(), blob: blob.to_owned(), from };
        let pieces = self.ask(ask).await?.map(|piece| match piece? {
            Piece::Bytes(bytes) => Ok(bytes),
            Piece::Image(_) => Err(strange()),
        });
        Ok(pieces.boxed())
    }
}

fn strange() -> AskError {
    AskError::Failed("the master answered something else than was asked".into())
}
