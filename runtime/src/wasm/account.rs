//! What one container uses and may use: CPU time and memory of all its instances together.
//!
//! CPU is measured where it is spent, around each poll of a guest's future; the engine's clock makes a busy guest
//! come back here every tick. A container above its share waits, others run meanwhile.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use wasmtime::ResourceLimiter;

use super::clock::Clock;

/// The period Kubernetes' CPU limits are enforced over.
const PERIOD: Duration = Duration::from_millis(100);
/// What a table element takes.
const TABLE_ELEMENT_BYTES: u64 = 8;

/// Counters and limits of one container.
pub(super) struct Account {
    clock: Arc<Clock>,
    cpu_ns: AtomicU64,
    quota: Option<Mutex<Quota>>,
    memory_bytes: AtomicU64,
    memory_bytes_max: Option<u64>,
}

impl Account {
    pub(super) fn new(clock: Arc<Clock>, cpu_millis_max: Option<u32>, memory_bytes_max: Option<u64>) -> Account {
        Account {
            clock,
            cpu_ns: AtomicU64::new(0),
            quota: cpu_millis_max.map(|millis| Mutex::new(Quota::new(millis, Instant::now()))),
            memory_bytes: AtomicU64::new(0),
            memory_bytes_max,
        }
    }

    pub(super) fn cpu_ns(&self) -> u64 {
        self.cpu_ns.load(Relaxed)
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Relaxed)
    }

    /// How long the container has to wait before it may run again.
    fn must_wait(&self, now: Instant) -> Option<Duration> {
        let quota = self.quota.as_ref()?;
        quota.lock().unwrap_or_else(PoisonError::into_inner).must_wait(now)
    }

    fn spent(&self, time: Duration) {
        self.cpu_ns.fetch_add(time.as_nanos() as u64, Relaxed);
        if let Some(quota) = &self.quota {
            quota.lock().unwrap_or_else(PoisonError::into_inner).balance_ns -= time.as_nanos() as i64;
        }
    }
}

/// A balance of CPU time that fills up at the rate of the limit, at most to one period's worth. It may go below zero,
/// since a guest is only interrupted at ticks.
struct Quota {
    millis: u32,
    balance_ns: i64,
    filled_at: Instant,
}

impl Quota {
    fn new(millis: u32, now: Instant) -> Quota {
        let millis = millis.max(1);
        Quota { millis, balance_ns: Self::full_ns(millis), filled_at: now }
    }

    fn full_ns(millis: u32) -> i64 {
        i64::from(millis) * (PERIOD.as_nanos() as i64 / 1000)
    }

    fn must_wait(&mut self, now: Instant) -> Option<Duration> {
        let passed_ns = now.saturating_duration_since(self.filled_at).as_nanos().min(1 << 40) as i64;
        let earned_ns = passed_ns.saturating_mul(i64::from(self.millis)) / 1000;
        if earned_ns > 0 {
            self.balance_ns = self.balance_ns.saturating_add(earned_ns).min(Self::full_ns(self.millis));
            self.filled_at = now;
        }
        if self.balance_ns > 0 {
            return None;
        }
        let missing_ns = (1 - self.balance_ns) as u64;
        Some(
            Duration::from_nanos(missing_ns.saturating_mul(1000) / u64::from(self.millis))
                .max(Duration::from_millis(1)),
        )
    }
}

/// A guest's future with its CPU time measured and limited.
pub(super) struct Metered<F> {
    account: Arc<Account>,
    guest: Pin<Box<F>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<F: Future> Metered<F> {
    pub(super) fn new(account: Arc<Account>, guest: F) -> Metered<F> {
        Metered { account, guest: Box::pin(guest), pause: None }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        loop {
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(cx));
                this.pause = None;
            }
            match this.account.must_wait(Instant::now()) {
                Some(wait) => this.pause = Some(Box::pin(tokio::time::sleep(wait))),
                None => break,
            }
        }
        let _running = this.account.clock.enter();
        let began = Instant::now();
        let polled = this.guest.as_mut().poll(cx);
        this.account.spent(began.elapsed());
        polled
    }
}

/// One instance's part of its container's memory, given back when the instance is gone.
pub(super) struct MemoryShare {
    account: Arc<Account>,
    bytes: u64,
    last_bytes: u64,
}

impl MemoryShare {
    pub(super) fn new(account: Arc<Account>) -> MemoryShare {
        MemoryShare { account, bytes: 0, last_bytes: 0 }
    }

    fn take(&mut self, bytes: u64) -> wasmtime::Result<bool> {
        let total = self.account.memory_bytes.fetch_add(bytes, Relaxed) + bytes;
        if let Some(memory_bytes_max) = self.account.memory_bytes_max
            && total > memory_bytes_max
        {
            self.account.memory_bytes.fetch_sub(bytes, Relaxed);
            return Err(MemoryExceeded { wanted_bytes: total, memory_bytes_max }.into());
        }
        self.bytes += bytes;
        self.last_bytes = bytes;
        Ok(true)
    }

    fn give_back_last(&mut self) {
        let bytes = std::mem::take(&mut self.last_bytes);
        self.bytes -= bytes;
        self.account.memory_bytes.fetch_sub(bytes, Relaxed);
    }

    /// Refuses what the program itself or the pool rules out anyway: that is an ordinary failure the guest can handle.
    fn grow(&mut self, current: usize, desired: usize, maximum: Option<usize>, unit: u64) -> wasmtime::Result<bool> {
        self.last_bytes = 0;
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.take((desired.saturating_sub(current) as u64).saturating_mul(unit))
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.account.memory_bytes.fetch_sub(self.bytes, Relaxed);
    }
}

impl ResourceLimiter for MemoryShare {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.grow(current, desired, maximum, 1)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.give_back_last();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.grow(current, desired, maximum, TABLE_ELEMENT_BYTES)
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.give_back_last();
        Ok(())
    }
}

/// The trap of a guest that grew beyond its container's limit.
#[derive(Debug)]
pub(super) struct MemoryExceeded {
    wanted_bytes: u64,
    memory_bytes_max: u64,
}

impl fmt::Display for MemoryExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryExceeded { wanted_bytes, memory_bytes_max } = self;
        write!(f, "memory limit exceeded: {wanted_bytes} bytes wanted, {memory_bytes_max} allowed")
    }
}

impl std::error::Error for MemoryExceeded {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_gets_its_share_over_time() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let mut quota = Quota::new(200, start);
        assert_eq!(quota.must_wait(start), None);
        // 30 ms spent of 20 ms per period: ten are owed, earned at a fifth of real time.
        quota.balance_ns -= 30_000_000;
        assert_eq!(quota.must_wait(start).map(|wait| wait.as_millis()), Some(50));
        assert!(quota.must_wait(ms(49)).is_some());
        assert_eq!(quota.must_wait(ms(51)), None);
        // Unused time is not saved up beyond one period.
        assert_eq!(quota.must_wait(ms(60_000)), None);
        assert_eq!(quota.balance_ns, 20_000_000);
    }
}
