//! The verbs that run a cluster: `server` for good, `up` for a while. Both are a master and an agent in one process.

mod config_file;
mod flags;
mod network;
mod process;
mod server;
mod up;

pub use config_file::with_config_file;
pub use flags::{ServerFlags, UpFlags};
pub use server::{default_data_dir, server};
pub use up::up;
