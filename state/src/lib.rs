//! The nouns in time: revision, event, write, and the world they add up to.
//!
//! Layer 1. Only three payloads travel through Coracle: the [`Object`], the [`Event`] and the [`Write`]; and every
//! reader of cluster state (watch cache, controller, scheduler, a node's replica) reads the one type [`World`].
//! No IO, no clock, no randomness here: time and identities are arguments ([`Stamp`]).

pub mod admission;
pub mod cron;
mod deletion;
mod event;
mod key;
mod labels;
mod object;
pub mod record;
mod stamp;
pub mod storage;
mod world;
mod write;

pub use deletion::{Deletion, FOREGROUND, ORPHAN, Propagation};
pub use event::{Change, Event};
pub use key::{Key, Revision};
pub use labels::selects;
pub use object::{DecodeError, Meta, Object, OwnerRef};
pub use stamp::{Identities, Stamp, rfc3339};
pub use world::World;
pub use write::{Expect, Write, is_finished, spec_differs};
