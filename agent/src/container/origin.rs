//! The master as the place where images come from before registries are asked.
//!
//! The link carries the questions and the bytes; what is made of them is `runtime::images`'.

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use runtime::images::{Content, Offer, Origin, OriginBytes, OriginError};
use std::fmt;
use sync::{AskError, MasterImage, Uplink};

/// Asks the master.
#[derive(Clone)]
pub struct Master(pub Uplink);

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Master")
    }
}

impl Origin for Master {
    fn find(&self, image: String) -> BoxFuture<'static, Result<Option<Offer>, OriginError>> {
        let uplink = self.0.clone();
        async move {
            match uplink.image(&image).await {
                Ok(found) => offer(found),
                Err(AskError::NotFound(_) | AskError::Unsupported) => Ok(None),
                Err(error) => Err(told(error)),
            }
        }
        .boxed()
    }

    fn read(&self, image: String, blob: String, from: u64) -> BoxFuture<'static, Result<OriginBytes, OriginError>> {
        let uplink = self.0.clone();
        async move {
            let pieces = uplink.blob(&image, &blob, from).await.map_err(told)?;
            Ok(pieces.map(|piece| piece.map_err(told)).boxed())
        }
        .boxed()
    }
}

fn offer(image: MasterImage) -> Result<Option<Offer>, OriginError> {
    let MasterImage { digest, blob, bytes, imported, container, config } = image;
    let content = if container { Content::Archive } else { Content::Program };
    let config = serde_json::from_value(config)
        .map_err(|error| OriginError::Failed(format!("what the master says of the image: {error}")))?;
    Ok(Some(Offer { digest, blob, bytes, imported, config, content }))
}

fn told(error: AskError) -> OriginError {
    let text = error.to_string();
    match error {
        AskError::Disconnected | AskError::Busy => OriginError::Away(text),
        AskError::NotFound(_) | AskError::Unsupported => OriginError::Absent(text),
        AskError::Forbidden(_) | AskError::Failed(_) => OriginError::Failed(text),
    }
}
