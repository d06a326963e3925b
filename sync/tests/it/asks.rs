//! What a node asks of its master, over QUIC and over TCP.

use crate::bulk::{EACH, linked_with};
use crate::harness::soon;
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use sync::{Ask, AskError, IncomingAsk, Limits, MasterImage, Piece};
use tokio::sync::mpsc;
use tokio::time::sleep;

const BYTES: usize = 3_000_000;

fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

fn image() -> MasterImage {
    MasterImage {
        digest: "sha256:d".into(),
        blob: "b".into(),
        bytes: BYTES as u64,
        imported: true,
        container: false,
        config: json!({"name": "app.wasm"}),
    }
}

/// Answers like a master that has one image; counts the bytes that it gave away, and says when nobody wants more.
fn serve(mut asks: mpsc::Receiver<IncomingAsk>) -> (Arc<AtomicUsize>, mpsc::UnboundedReceiver<()>) {
    let given = Arc::new(AtomicUsize::new(0));
    let (dropped, drops) = mpsc::unbounded_channel();
    let counter = given.clone();
    tokio::spawn(async move {
        while let Some(incoming) = asks.recv().await {
            let (counter, dropped) = (counter.clone(), dropped.clone());
            match incoming.ask.clone() {
                Ask::Image { image: name } if name == "app" => {
                    incoming.answer(Ok(stream::iter([Ok(Piece::Image(Box::new(image())))]).boxed()));
                }
                Ask::Image { image } => incoming.answer(Err(AskError::Forbidden(format!("{image}: no")))),
                Ask::Blob { image, .. } if image == "broken" => {
                    let pieces = [Ok(Piece::Bytes(Bytes::from_static(b"x"))), Err(AskError::Failed("disk".into()))];
                    incoming.answer(Ok(stream::iter(pieces).boxed()));
                }
                // for ever
                Ask::Blob { image, .. } if image == "endless" => {
                    let guard = Guard(dropped);
                    let pieces = stream::unfold(guard, move |guard| {
                        counter.fetch_add(32 << 10, Ordering::Relaxed);
                        async move { Some((Ok(Piece::Bytes(Bytes::from(vec![1; 32 << 10]))), guard)) }
                    });
                    incoming.answer(Ok(pieces.boxed()));
                }
                Ask::Blob { from, .. } => {
                    let rest: Vec<u8> = (from as usize..BYTES).map(byte).collect();
                    let pieces: Vec<_> =
                        rest.chunks(100_000).map(|piece| Ok(Piece::Bytes(Bytes::copy_from_slice(piece)))).collect();
                    incoming.answer(Ok(stream::iter(pieces).boxed()));
                }
            }
        }
    });
    (given, drops)
}

struct Guard(mpsc::UnboundedSender<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_and_their_bytes_are_asked_for() {
    for over in EACH {
        let mut linked = linked_with(over, Limits::default()).await;
        let (_none, unused) = mpsc::channel(1);
        serve(std::mem::replace(&mut linked.session.end.asks, unused));
        assert_eq!(soon("an image", linked.uplink.image("app")).await, Ok(image()));
        let refused = soon("a refusal", linked.uplink.image("theirs")).await;
        assert_eq!(refused, Err(AskError::Forbidden("theirs: no".into())));
        for from in [0, 1_234_567, BYTES] {
            let mut pieces = soon("the bytes", linked.uplink.blob("app", "b", from as u64)).await.unwrap();
            let mut at = from;
            while let Some(piece) = soon("a piece", pieces.next()).await {
                let piece = piece.unwrap();
                assert!(piece.iter().enumerate().all(|(place, got)| *got == byte(at + place)));
                at += piece.len();
            }
            assert_eq!(at, BYTES);
        }
        let mut broken = soon("the bytes", linked.uplink.blob("broken", "b", 0)).await.unwrap();
        assert_eq!(soon("a piece", broken.next()).await, Some(Ok(Bytes::from_static(b"x"))));
        assert_eq!(soon("the failure", broken.next()).await, Some(Err(AskError::Failed("disk".into()))));
        assert_eq!(soon("the end", broken.next()).await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_waits_alone_and_who_leaves_is_noticed() {
    let limits = Limits { asks_max: 2, ..Limits::default() };
    for over in EACH {
        let mut linked = linked_with(over, limits).await;
        let (_none, unused) = mpsc::channel(1);
        let (given, mut drops) = serve(std::mem::replace(&mut linked.session.end.asks, unused));
        let mut stuck = soon("the bytes", linked.uplink.blob("endless", "b", 0)).await.unwrap();
        assert!(matches!(soon("a piece", stuck.next()).await, Some(Ok(_))));
        let mut before = 0;
        let settled = async {
            loop {
                sleep(Duration::from_millis(300)).await;
                let now = given.load(Ordering::Relaxed);
                if now == before {
                    return now;
                }
                before = now;
            }
        };
        let bytes = soon("back-pressure", settled).await;
        assert!(bytes < 32 << 20, "{bytes} bytes are under way");
        assert_eq!(soon("an image", linked.uplink.image("app")).await, Ok(image()));
        drop(stuck);
        soon("the master's notice", drops.recv()).await;
        // so many at once; one more waits for its turn
        let mut all = Vec::new();
        for _ in 0..limits.asks_max {
            all.push(soon("the bytes", linked.uplink.blob("endless", "b", 0)).await.unwrap());
        }
        let waiting = tokio::spawn({
            let uplink = linked.uplink.clone();
            async move { uplink.image("app").await }
        });
        sleep(Duration::from_millis(100)).await;
        assert!(!waiting.is_finished());
        all.pop();
        assert_eq!(soon("its turn", waiting).await.unwrap(), Ok(image()));
        // the end of the session ends asks
        linked.session.closed.cancel();
        for mut pieces in all {
            let ended = async {
                loop {
                    match pieces.next().await {
                        Some(Ok(_)) => {}
                        end => return end,
                    }
                }
            };
            assert_eq!(soon("the end", ended).await, Some(Err(AskError::Disconnected)));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_takes_no_asks_is_not_asked() {
    for over in EACH {
        let linked = linked_with(over, Limits { asks_max: 0, ..Limits::default() }).await;
        assert_eq!(soon("an answer", linked.uplink.image("app")).await, Err(AskError::Unsupported));
    }
}
