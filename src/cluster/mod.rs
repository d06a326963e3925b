//! The verbs that run a cluster: `server` for good, `up` for a while, both a master and an agent in one process; `agent` is a
//! node of a cluster elsewhere.

mod agent;
mod config_file;
mod flags;
mod images;
mod memory;
mod network;
mod process;
mod server;
mod up;

pub use agent::agent;
pub use config_file::with_config_file;
pub use flags::{AgentFlags, ServerFlags, UpFlags};
pub use server::{default_data_dir, server};
pub use up::up;
