//! Containers of Docker, against a real engine. Needs root and `CORACLE_TEST_DOCKER=1` (`cargo xtask test` sees to both).

mod bench;
mod life;
mod network;
mod sessions;
mod things;
