//! A master and nodes of its own on a site of their own: what the link between them costs, what hundreds of nodes cost the
//! master, and how fast pods talk across nodes. Needs root.

pub mod link;
pub mod master;
pub mod network;
pub mod peer;
mod simulated;
pub mod site;
