//! Gives memory back to the system that a busy moment took: the C library would keep nearly all of it.

use std::time::Duration;

/// How often the process looks at itself.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// A change of its memory that is worth the work, KiB.
const CHANGE_KIB_MIN: u64 = 4 << 10;
/// Looks after which what a busy moment left is no longer expected to be freed.
const LOOKS: u32 = 4;

/// Looks from time to time, for ever.
pub async fn keep() {
    let (mut kept_kib, mut looks_left) = (0, 0);
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(found_kib) = anonymous_kib() else { return };
        if found_kib > kept_kib + CHANGE_KIB_MIN {
            looks_left = LOOKS;
        }
        kept_kib = kept_kib.min(found_kib);
        if looks_left == 0 {
            continue;
        }
        looks_left -= 1;
        // a panic there has been reported by its thread
        let _ = tokio::task::spawn_blocking(give_back).await;
        // what it takes up again between all these looks it needs
        kept_kib = if looks_left == 0 { found_kib } else { anonymous_kib().unwrap_or(kept_kib) };
    }
}

/// Memory of the process that no file backs.
fn anonymous_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A function of glibc's; other C libraries keep less.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn give_back() {
    // SAFETY: it takes no pointer, and may be called at any time from any thread.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test says what is wrong by panicking
mod tests {
    use super::*;

    #[test]
    #[cfg(target_env = "gnu")]
    fn what_is_not_used_any_more_goes_back() {
        // pieces that the C library does not map one by one, each followed by one that stays
        let pairs: Vec<_> = (0..4_000).map(|_| (vec![1_u8; 16 << 10], vec![1_u8; 64])).collect();
        let (gone, kept): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        drop(gone);
        let before = anonymous_kib().unwrap();
        give_back();
        assert!(anonymous_kib().unwrap() + (16 << 10) < before, "of {before} KiB");
        drop(kept);
    }
}
