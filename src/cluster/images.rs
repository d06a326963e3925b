//! The node's store of images as what the master hands on to other nodes.
//!
//! Images that were imported are handed on under their names; those from registries too, unless credentials were shown for
//! them: then a node must have been given the digest by the registry itself.

use agent::images::{Content, ImageError, ImageLimits, Images, Source, Stored};
use anyhow::{Context, Result};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use server::{ImageBytes, ImageSource};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use sync::MasterImage;

/// The store of a server's data directory.
pub fn open(data_dir: &Path) -> Result<Arc<dyn ImageSource>> {
    let dir = data_dir.join("agent/images");
    let images = Images::open(&dir, ImageLimits::default()).context("open the store of images")?;
    Ok(Arc::new(Shelf(images)))
}

#[derive(Debug)]
struct Shelf(Images);

impl ImageSource for Shelf {
    fn find(&self, image: String) -> BoxFuture<'static, Result<Option<MasterImage>, String>> {
        let images = self.0.clone();
        async move {
            let found = images.find(&image).await.map_err(|error| chain(&error))?;
            found.filter(|stored| stored.source != Source::Private).map(described).transpose()
        }
        .boxed()
    }

    fn read(&self, image: String, blob: String, from: u64) -> BoxFuture<'static, Result<Option<ImageBytes>, String>> {
        let images = self.0.clone();
        async move {
            let found = images.read(&image, &blob, from).await.map_err(|error| chain(&error))?;
            Ok(found.map(|pieces| pieces.map(|piece| piece.map_err(|error| error.to_string())).boxed()))
        }
        .boxed()
    }
}

fn described(stored: Stored) -> Result<MasterImage, String> {
    Ok(MasterImage {
        digest: stored.digest,
        blob: stored.blob,
        bytes: stored.bytes,
        imported: stored.source == Source::Imported,
        container: stored.content == Content::Archive,
        config: serde_json::to_value(&stored.config).map_err(|error| error.to_string())?,
    })
}

fn chain(error: &ImageError) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(found) = cause {
        text = format!("{text}: {found}");
        cause = found.source();
    }
    text
}
