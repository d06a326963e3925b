//! What nodes ask this master for: images, of which each node gets those that its pods name, and no others.
//!
//! Deliberately absent: the store of images, which is the door's to open ([`ImageSource`]).

use crate::links::Links;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered};
use k8s_openapi::api::core::v1::Pod;
use state::World;
use std::fmt;
use std::sync::Arc;
use sync::{Ask, AskError, IncomingAsk, MasterImage, Piece, Pieces};
use tokio::sync::{Semaphore, mpsc};

/// Images that are being read for nodes at once; who comes later is told to come again.
const READS_MAX: usize = 64;
/// Asks of one node that wait for the store at once.
const ASKS_MAX: usize = 16;

/// The images that a master has.
pub trait ImageSource: Send + Sync + fmt::Debug {
    /// What a name, as in a pod, stands for; none if it stands for nothing that other nodes may have by its name. The error
    /// is for people.
    fn find(&self, image: String) -> BoxFuture<'static, Result<Option<MasterImage>, String>>;

    /// The bytes of an image from the byte `from` on; none if the name does not stand for this blob.
    fn read(&self, image: String, blob: String, from: u64) -> BoxFuture<'static, Result<Option<ImageBytes>, String>>;
}

/// Bytes of an image, in order.
pub type ImageBytes = BoxStream<'static, Result<Bytes, String>>;

/// Hands on images. Clones share it.
#[derive(Clone)]
pub struct Images {
    source: Option<Arc<dyn ImageSource>>,
    room: Arc<Semaphore>,
}

impl Images {
    /// Those of a source; without one, there are none.
    pub fn new(source: Option<Arc<dyn ImageSource>>) -> Self {
        Self { source, room: Arc::new(Semaphore::new(READS_MAX)) }
    }

    async fn answer(&self, ask: Ask, node: &str, world: &World) -> Result<Pieces, AskError> {
        let source = self.source.as_ref().ok_or(AskError::Unsupported)?;
        let (Ask::Image { image } | Ask::Blob { image, .. }) = &ask;
        if !names(world, node, image) {
            return Err(AskError::Forbidden(format!("no pod of node {node:?} names the image {image:?}")));
        }
        let absent = || AskError::NotFound(format!("the master has no image {image:?}"));
        match &ask {
            Ask::Image { image } => {
                let found = source.find(image.clone()).await.map_err(AskError::Failed)?.ok_or_else(absent)?;
                Ok(stream::iter([Ok(Piece::Image(Box::new(found)))]).boxed())
            }
            Ask::Blob { image, blob, from } => {
                let permit = self.room.clone().try_acquire_owned().map_err(|_| AskError::Busy)?;
                let pieces = source.read(image.clone(), blob.clone(), *from).await.map_err(AskError::Failed)?;
                let pieces = pieces.ok_or_else(absent)?.map(move |piece| {
                    let _held = &permit;
                    piece.map(Piece::Bytes).map_err(AskError::Failed)
                });
                Ok(pieces.boxed())
            }
        }
    }
}

impl Links {
    /// Answers what a node asks, until it hangs up.
    pub(crate) async fn hand_on(self, node: String, mut asks: mpsc::Receiver<IncomingAsk>) {
        let mut answering = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(()) = answering.next() => {}
                incoming = asks.recv(), if answering.len() < ASKS_MAX => {
                    let Some(incoming) = incoming else { return };
                    let (links, node) = (&self, &node);
                    answering.push(async move {
                        let answer = links.images().answer(incoming.ask.clone(), node, &links.world()).await;
                        if let Err(AskError::Forbidden(why)) = &answer {
                            tracing::warn!(node, why, "a node's ask is refused");
                        }
                        incoming.answer(answer);
                    });
                }
            }
        }
    }
}

/// Whether a pod of the node has the image.
fn names(world: &World, node: &str, image: &str) -> bool {
    world.pods_on(node).filter_map(|pod| pod.view::<Pod>()?.spec.as_ref()).any(|spec| {
        let own = spec.containers.iter().map(|container| &container.image);
        let first = spec.init_containers.iter().flatten().map(|container| &container.image);
        let later = spec.ephemeral_containers.iter().flatten().map(|container| &container.image);
        own.chain(first).chain(later).any(|named| named.as_deref() == Some(image))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use serde_json::json;
    use state::{Object, Revision};

    #[derive(Debug)]
    struct One;

    impl ImageSource for One {
        fn find(&self, image: String) -> BoxFuture<'static, Result<Option<MasterImage>, String>> {
            let found = MasterImage {
                digest: "sha256:d".into(),
                blob: "b".into(),
                bytes: 3,
                imported: true,
                container: false,
                config: json!({}),
            };
            async move { Ok((image == "app:1").then_some(found)) }.boxed()
        }

        fn read(&self, _: String, blob: String, from: u64) -> BoxFuture<'static, Result<Option<ImageBytes>, String>> {
            let bytes = Bytes::from_static(b"abc").slice(from as usize..);
            async move { Ok((blob == "b").then(|| stream::iter([Ok(bytes)]).boxed())) }.boxed()
        }
    }

    fn world() -> World {
        let mut world = World::default();
        let kind = manifests::by_kind("v1", "Pod").unwrap();
        for (name, node, spec) in [
            ("p", "a", json!({"containers": [{"name": "c", "image": "app:1"}]})),
            ("q", "a", json!({"containers": [], "initContainers": [{"name": "c", "image": "gone:1"}]})),
            ("r", "b", json!({"containers": [{"name": "c", "image": "theirs:1"}]})),
        ] {
            let mut value = json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec});
            value["spec"]["nodeName"] = node.into();
            world.put(Arc::new(Object::encode(kind.resource(), Revision(1), value).unwrap()));
        }
        world
    }

    #[tokio::test]
    async fn a_node_gets_what_its_pods_name() {
        let images = Images::new(Some(Arc::new(One)));
        let blob = |image: &str, blob: &str, from| Ask::Blob { image: image.into(), blob: blob.into(), from };
        let cases = [
            (Ask::Image { image: "app:1".into() }, "image"),
            (Ask::Image { image: "gone:1".into() }, "the master has no image \"gone:1\""),
            (Ask::Image { image: "theirs:1".into() }, "no pod of node \"a\" names the image \"theirs:1\""),
            (Ask::Image { image: "app".into() }, "no pod of node \"a\" names the image \"app\""),
            (blob("app:1", "b", 1), "bc"),
            (blob("app:1", "other", 0), "the master has no image \"app:1\""),
            (blob("theirs:1", "b", 0), "no pod of node \"a\" names the image \"theirs:1\""),
        ];
        for (ask, expected) in cases {
            let got = match images.answer(ask.clone(), "a", &world()).await {
                Err(error) => error.to_string(),
                Ok(mut pieces) => match pieces.next().await.unwrap().unwrap() {
                    Piece::Image(_) => "image".into(),
                    Piece::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                },
            };
            assert_eq!(got, expected, "{ask:?}");
        }
        let mut open = Vec::new();
        for _ in 0..READS_MAX {
            open.push(images.answer(blob("app:1", "b", 0), "a", &world()).await.ok().unwrap());
        }
        assert_eq!(images.answer(blob("app:1", "b", 0), "a", &world()).await.err(), Some(AskError::Busy));
        open.pop();
        assert!(images.answer(blob("app:1", "b", 0), "a", &world()).await.is_ok());
        let none = Images::new(None);
        assert_eq!(none.answer(blob("app:1", "b", 0), "a", &world()).await.err(), Some(AskError::Unsupported));
    }
}
