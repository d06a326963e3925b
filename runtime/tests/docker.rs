//! Containers of Docker, against a real engine. Needs root and `CORACLE_TEST_DOCKER=1` (`cargo xtask test` sees to both).
#![allow(clippy::unwrap_used)]

#[path = "docker/bench.rs"]
mod bench;
#[path = "docker/life.rs"]
mod life;
#[path = "docker/network.rs"]
mod network;
#[path = "docker/sessions.rs"]
mod sessions;
#[path = "docker/things.rs"]
mod things;
