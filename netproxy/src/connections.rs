//! Open connections of one owner (a listener, a pod, the ingress): counted, bounded, and told to finish when the owner goes.
//! Telling costs nothing per request: a connection looks at one flag when it is polled.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures::task::AtomicWaker;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A bound on a set of connections. Several listeners, each with its own bound, may fill one set.
pub(crate) struct Connections {
    set: Arc<Set>,
    /// Of this owner.
    own: Arc<Semaphore>,
    /// Of the whole proxy.
    all: Arc<Semaphore>,
}

#[derive(Default)]
struct Set {
    open: Mutex<HashMap<u64, Arc<Signal>>>,
    next: AtomicU64,
    closing: AtomicBool,
    changed: Notify,
}

#[derive(Default)]
struct Signal {
    finish: AtomicBool,
    abort: AtomicBool,
    waker: AtomicWaker,
}

impl Signal {
    fn raise(&self, abort: bool) {
        self.finish.store(true, Ordering::Release);
        self.abort.fetch_or(abort, Ordering::AcqRel);
        self.waker.wake();
    }
}

/// Leave to have one connection, got before it is accepted.
pub(crate) struct Permit {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// One open connection; leaves the set when dropped.
pub(crate) struct Connection {
    set: Arc<Set>,
    id: u64,
    signal: Arc<Signal>,
    _permit: Permit,
}

/// What a protocol does when asked to finish.
pub(crate) trait Graceful: Future {
    /// Finish what is in flight, take nothing new.
    fn finish(self: std::pin::Pin<&mut Self>);
}

impl Connections {
    pub(crate) fn new(connections_max: usize, all: Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self { set: Arc::default(), own: Arc::new(Semaphore::new(connections_max)), all })
    }

    /// The same set with a bound of its own for one listener.
    pub(crate) fn bounded_in(other: &Self, connections_max: usize) -> Arc<Self> {
        let own = Arc::new(Semaphore::new(connections_max));
        Arc::new(Self { set: other.set.clone(), own, all: other.all.clone() })
    }

    /// Waits until one more connection is allowed.
    pub(crate) async fn permit(&self) -> Permit {
        // The semaphores are never closed; if one were, there would be nothing to wait for.
        loop {
            if let Ok(own) = self.own.clone().acquire_owned().await
                && let Ok(all) = self.all.clone().acquire_owned().await
            {
                return Permit { _own: own, _all: all };
            }
        }
    }

    /// Leave to have one more, if that is allowed right now.
    pub(crate) fn try_permit(&self) -> Option<Permit> {
        let own = self.own.clone().try_acquire_owned().ok()?;
        let all = self.all.clone().try_acquire_owned().ok()?;
        Some(Permit { _own: own, _all: all })
    }

    /// Enters one connection.
    pub(crate) fn enter(&self, permit: Permit) -> Connection {
        let signal = Arc::new(Signal::default());
        let id = self.set.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.set.lock();
        if self.set.closing.load(Ordering::Acquire) {
            signal.raise(false);
        }
        open.insert(id, signal.clone());
        drop(open);
        Connection { set: self.set.clone(), id, signal, _permit: permit }
    }

    /// Tells every connection, present and future, to finish.
    pub(crate) fn finish(&self) {
        let open = self.set.lock();
        self.set.closing.store(true, Ordering::Release);
        open.values().for_each(|signal| signal.raise(false));
    }

    /// Ends every connection now.
    pub(crate) fn abort(&self) {
        let open = self.set.lock();
        self.set.closing.store(true, Ordering::Release);
        open.values().for_each(|signal| signal.raise(true));
    }

    /// Resolves when none is open.
    pub(crate) async fn empty(&self) {
        loop {
            let mut changed = pin!(self.set.changed.notified());
            changed.as_mut().enable();
            if self.set.lock().is_empty() {
                return;
            }
            changed.await;
        }
    }
}

impl Set {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Signal>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Drives `protocol` to its end; passes on the owner's wish to finish. None: aborted.
    pub(crate) async fn drive<P: Graceful>(&self, protocol: P) -> Option<P::Output> {
        let mut protocol = pin!(protocol);
        let mut told = false;
        std::future::poll_fn(|cx| {
            self.signal.waker.register(cx.waker());
            if self.signal.finish.load(Ordering::Acquire) {
                if self.signal.abort.load(Ordering::Acquire) {
                    return Poll::Ready(None);
                }
                if !told {
                    told = true;
                    protocol.as_mut().finish();
                }
            }
            protocol.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// As `drive`, for something that knows no finishing: goes on until it ends or is aborted.
    pub(crate) async fn drive_plain<F: Future>(&self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            self.signal.waker.register(cx.waker());
            if self.signal.abort.load(Ordering::Acquire) {
                return Poll::Ready(None);
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.set.lock();
        open.remove(&self.id);
        if open.is_empty() {
            self.set.changed.notify_waiters();
        }
    }
}
