//! The timer of one HTTP/1.1 connection. hyper wants a new deadline for every request's head; arming a real timer each time, only to
//! disarm it microseconds later, is what most of a short request's overhead would be. So one real timer per connection stays
//! armed and, when it fires, looks whether the deadline has moved on meanwhile.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Cheap to ask for deadlines that are hardly ever reached.
#[derive(Clone, Default)]
pub(crate) struct LazyTimer(Arc<Mutex<Option<Armed>>>);

struct Armed {
    until: Instant,
    sleep: Pin<Box<tokio::time::Sleep>>,
}

struct LazySleep {
    until: Instant,
    timer: LazyTimer,
}

impl hyper::rt::Timer for LazyTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, until: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(LazySleep { until, timer: self.clone() })
    }
}

impl hyper::rt::Sleep for LazySleep {}

impl Future for LazySleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Only the connection's own task comes here: the lock is never waited for.
        let mut armed = self.timer.0.lock().unwrap_or_else(PoisonError::into_inner);
        let armed = armed.get_or_insert_with(|| Armed {
            until: self.until,
            sleep: Box::pin(tokio::time::sleep_until(self.until.into())),
        });
        if armed.until > self.until {
            armed.reset(self.until);
        }
        while armed.sleep.as_mut().poll(cx).is_ready() {
            if armed.until >= self.until {
                return Poll::Ready(());
            }
            armed.reset(self.until);
        }
        Poll::Pending
    }
}

impl Armed {
    fn reset(&mut self, until: Instant) {
        self.until = until;
        self.sleep.as_mut().reset(until.into());
    }
}
