//! The engine's clock: advances the epoch every tick, so that a guest that computes without end yields and can be
//! stopped. It only ticks while guests run; an idle node has no timer here.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::{Engine, EngineWeak};

/// How long a guest computes before others get their turn.
pub(super) const TICK: Duration = Duration::from_millis(10);
/// Ticks without a running guest before the thread goes to sleep. More than one, so that a busy HTTP service does not
/// wake it for each request.
const IDLE_TICKS_MAX: u32 = 20;

/// Counts running guests and owns the ticking thread.
pub(super) struct Clock {
    shared: Arc<Shared>,
}

struct Shared {
    running: AtomicUsize,
    parked: AtomicBool,
    closed: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Clock {
    pub(super) fn start(engine: &Engine) -> std::io::Result<Clock> {
        let shared = Arc::new(Shared {
            running: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            thread: OnceLock::new(),
        });
        let (ticking, engine) = (shared.clone(), engine.weak());
        let thread = thread::Builder::new().name("wasm-clock".into()).spawn(move || tick(&ticking, &engine))?;
        // Cannot have been set before.
        let _ = shared.thread.set(thread.thread().clone());
        Ok(Clock { shared })
    }

    /// Marks a guest as running until the guard is dropped.
    pub(super) fn enter(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, SeqCst);
        if self.shared.parked.load(SeqCst) {
            self.shared.wake();
        }
        Running(&self.shared.running)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shared.closed.store(true, SeqCst);
        self.shared.wake();
    }
}

impl Shared {
    fn wake(&self) {
        self.parked.store(false, SeqCst);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// See [`Clock::enter`].
pub(super) struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

fn tick(shared: &Shared, engine: &EngineWeak) {
    let mut idle_ticks = 0;
    while !shared.closed.load(SeqCst) {
        thread::sleep(TICK);
        match engine.upgrade() {
            Some(engine) => engine.increment_epoch(),
            None => return,
        }
        if shared.running.load(SeqCst) > 0 {
            idle_ticks = 0;
            continue;
        }
        idle_ticks += 1;
        if idle_ticks < IDLE_TICKS_MAX {
            continue;
        }
        // The order matters: whoever enters from here on sees `parked`, whoever entered before is seen below.
        shared.parked.store(true, SeqCst);
        while shared.parked.load(SeqCst) && shared.running.load(SeqCst) == 0 && !shared.closed.load(SeqCst) {
            thread::park();
        }
        shared.parked.store(false, SeqCst);
        idle_ticks = 0;
    }
}
