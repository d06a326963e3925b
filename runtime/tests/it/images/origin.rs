//! Images that a master hands on, from one that breaks off, lies, and goes away.

use super::registry::{Registry, wasm};
use super::{Node, told};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use runtime::images::PullPolicy::{Always, IfNotPresent, Never};
use runtime::images::{
    Content, ImageConfig, ImageLimits, Images, Kind, Offer, Origin, OriginBytes, OriginError, RegistryConfig, Source,
};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A master of a few images.
#[derive(Debug, Default)]
struct Master(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    images: BTreeMap<String, (Offer, Vec<u8>)>,
    is_away: bool,
    /// Each answer ends after so many bytes, as if the link had broken.
    breaks_after: Option<usize>,
    /// From where bytes were asked for.
    reads: Vec<u64>,
}

impl Master {
    fn put(&self, image: &str, bytes: &[u8], imported: bool) {
        let blob: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let config = ImageConfig { name: "app.wasm".into(), ..ImageConfig::default() };
        let digest = format!("sha256:{blob}");
        let offer = Offer { digest, blob, bytes: bytes.len() as u64, imported, config, content: Content::Program };
        self.set(|state| drop(state.images.insert(image.into(), (offer, bytes.to_owned()))));
    }

    fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }
}

impl Origin for Master {
    fn find(&self, image: String) -> BoxFuture<'static, Result<Option<Offer>, OriginError>> {
        let found = self.set(|state| match state.is_away {
            true => Err(OriginError::Away("away".into())),
            false => Ok(state.images.get(&image).map(|(offer, _)| offer.clone())),
        });
        async move { found }.boxed()
    }

    fn read(&self, image: String, blob: String, from: u64) -> BoxFuture<'static, Result<OriginBytes, OriginError>> {
        let read = self.set(|state| {
            state.reads.push(from);
            let Some((_, bytes)) = state.images.get(&image).filter(|(offer, _)| offer.blob == blob) else {
                return Err(OriginError::Absent("not here".into()));
            };
            let rest = bytes[from as usize..].to_vec();
            let pieces: Vec<_> = match state.breaks_after {
                Some(most) if most < rest.len() => {
                    vec![Ok(Bytes::from(rest[..most].to_vec())), Err(OriginError::Away("broken".into()))]
                }
                _ => vec![Ok(Bytes::from(rest))],
            };
            // a little later, so that others come meanwhile
            let pieces = stream::iter(pieces).then(|piece| async {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                piece
            });
            Ok(pieces.boxed())
        });
        async move { read }.boxed()
    }
}

fn node(dir: &Path, master: &Arc<Master>) -> Images {
    Images::open_with(dir, ImageLimits::default(), RegistryConfig::default(), Some(master.clone())).unwrap()
}

/// A name whose registry nobody can reach.
const APP: &str = "127.0.0.1:1/app:v1";

#[tokio::test]
async fn the_masters_images_come_once_and_whole() {
    let (dir, master) = (tempfile::tempdir().unwrap(), Arc::new(Master::default()));
    let images = node(dir.path(), &master);
    let first = wasm(1);
    master.put(APP, &first, true);
    assert!(images.pull(APP, Never, &[]).await.is_err());
    assert_eq!(images.kind(APP, &[]).await.unwrap(), Kind::Wasm);
    // it breaks off again and again, and many want it
    master.set(|state| state.breaks_after = Some(first.len() / 3));
    let pulls = (0..5).map(|_| images.pull(APP, IfNotPresent, &[]));
    for pulled in futures::future::join_all(pulls).await {
        let pulled = pulled.unwrap();
        assert_eq!(std::fs::read(&pulled.path).unwrap(), first);
        assert!(pulled.image_id.starts_with("127.0.0.1:1/app@sha256:"));
    }
    let third = first.len() as u64 / 3;
    let reads = master.set(|state| std::mem::take(&mut state.reads));
    assert_eq!(reads[..3], [0, third, 2 * third], "{reads:?}");
    assert_eq!(images.find(APP).await.unwrap().unwrap().source, Source::Master);

    // asked anew, and fetched only when it is another
    assert!(images.pull(APP, Always, &[]).await.unwrap().was_present);
    master.put(APP, &wasm(2), true);
    assert!(images.pull(APP, IfNotPresent, &[]).await.unwrap().was_present);
    let moved = images.pull(APP, Always, &[]).await.unwrap();
    assert!(!moved.was_present && std::fs::read(&moved.path).unwrap() == wasm(2));

    // without the master, what it said last holds; without the image there, the registry is asked
    master.set(|state| state.is_away = true);
    assert!(images.pull(APP, Always, &[]).await.unwrap().was_present);
    master.set(|state| (state.is_away, state.images) = (false, BTreeMap::new()));
    let refused = images.pull(APP, Always, &[]).await.unwrap_err();
    assert!(told(&refused, &[]).contains("failed to do request"), "{refused:?}");
    assert!(images.pull(APP, IfNotPresent, &[]).await.unwrap().was_present);
}

#[tokio::test]
async fn what_has_come_is_continued_by_the_next_process_and_lies_are_seen() {
    let (dir, master) = (tempfile::tempdir().unwrap(), Arc::new(Master::default()));
    let program = wasm(3);
    master.put(APP, &program, true);
    master.set(|state| state.breaks_after = Some(100));
    let images = node(dir.path(), &master);
    {
        let pulling = images.pull(APP, IfNotPresent, &[]);
        tokio::pin!(pulling);
        while master.set(|state| state.reads.len()) < 2 {
            tokio::select! {
                _ = &mut pulling => panic!("too early"),
                () = tokio::time::sleep(std::time::Duration::from_millis(5)) => {}
            }
        }
    }
    drop(images);
    master.set(|state| (state.breaks_after, state.reads) = (None, Vec::new()));
    let images = node(dir.path(), &master);
    let pulled = images.pull(APP, IfNotPresent, &[]).await.unwrap();
    assert_eq!(std::fs::read(&pulled.path).unwrap(), program);
    let reads = master.set(|state| std::mem::take(&mut state.reads));
    assert!(reads.len() == 1 && reads[0] >= 100, "{reads:?}");

    let lied = "127.0.0.1:1/lied:v1";
    master.put(lied, &wasm(4), true);
    master.set(|state| state.images.get_mut(lied).unwrap().1 = wasm(5));
    let refused = images.pull(lied, IfNotPresent, &[]).await.unwrap_err();
    assert!(told(&refused, &[]).contains("unexpected digest"), "{refused:?}");
    // nothing of it is kept
    master.set(|state| state.images.get_mut(lied).unwrap().1 = wasm(4));
    assert!(images.pull(lied, IfNotPresent, &[]).await.is_ok());
    assert_eq!(std::fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn of_a_registrys_image_the_name_is_the_registrys_and_the_bytes_are_the_masters() {
    let Some(registry) = Registry::start(false) else { return };
    let pusher = Node::new();
    let image = registry.name("app:v1");
    let digest = pusher.push(&wasm(1), &image).await;
    let (dir, master) = (tempfile::tempdir().unwrap(), Arc::new(Master::default()));
    let images = node(dir.path(), &master);
    // the master has other bytes under the name: not what the registry says now
    master.put(&image, &wasm(2), false);
    let pulled = images.pull(&image, IfNotPresent, &[]).await.unwrap();
    assert_eq!((std::fs::read(&pulled.path).unwrap(), pulled.digest), (wasm(1), digest));
    assert_eq!(images.find(&image).await.unwrap().unwrap().source, Source::Public);
    // it has the same ones
    drop(pulled.pin);
    images.remove(&image).await.unwrap();
    master.put(&image, &wasm(1), false);
    master.set(|state| state.reads.clear());
    images.pull(&image, Always, &[]).await.unwrap();
    assert_eq!(master.set(|state| state.reads.clone()), [0]);
    // where no registry answers, what it said once is taken, but not for who asks anew
    let gone = "127.0.0.1:1/gone:v1";
    master.put(gone, &wasm(6), false);
    assert!(images.pull(gone, Always, &[]).await.is_err());
    assert!(images.pull(gone, IfNotPresent, &[]).await.is_ok());
}
