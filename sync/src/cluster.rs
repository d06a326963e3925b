//! What a node is told about its cluster at the start of each session, and where its own knowledge stands.

use crate::Down;
use serde::{Deserialize, Serialize};
use state::Revision;
use std::net::{IpAddr, SocketAddr};

/// The first message of each session: which cluster this is, and what comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The history that the revisions of this session belong to: random, another one at each start of a master.
    pub lineage: String,
    /// What holds for the whole cluster.
    pub cluster: ClusterFacts,
    /// The node's position was good: what follows continues it. Otherwise a [`Down::Reset`] comes next.
    pub resumed: bool,
}

/// What holds for the whole cluster and is no object. A node keeps the newest it was told on its disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterFacts {
    /// The network of all pods: `10.42.0.0/16`.
    pub cluster_cidr: String,
    /// The network of Service addresses: `10.43.0.0/16`.
    pub service_cidr: String,
    /// Address of the cluster's DNS service, where one is served.
    #[serde(default)]
    pub cluster_dns: Option<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// Where the API server is reached: what stands behind `kubernetes.default.svc`.
    pub api: SocketAddr,
    /// All addresses lie in 127.0.0.0/8: a cluster of one machine.
    #[serde(default)]
    pub loopback: bool,
    /// The authority that signs nodes' certificates (the client CA), PEM.
    pub node_ca_pem: String,
    /// The authority that signs the master's certificate, PEM.
    pub server_ca_pem: String,
}

/// How much of which history a node knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Whose revisions these are ([`Welcome::lineage`]).
    pub lineage: String,
    /// All changes up to here are known.
    #[serde(with = "crate::wire::revision")]
    pub revision: Revision,
}

/// What a node says first on each session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The node's name; must be the one in its certificate.
    pub node: String,
    /// What it knows already.
    #[serde(default)]
    pub from: Option<Position>,
    /// Newest version of the protocol it speaks ([`crate::VERSION`]).
    pub version: u32,
    /// Version of the product, for people.
    #[serde(default)]
    pub agent: String,
}

/// Finds the position that what came down the link adds up to: from where a new session may continue, and what to keep on
/// disk beside the objects.
///
/// One revision may come as several events, so an event of revision `r` shows only that all before `r` are known; a
/// [`Down::Reached`] or a [`Down::Reset`] shows that `r` itself is. To be told an event twice does no harm.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    lineage: String,
    revision: Option<Revision>,
}

impl Progress {
    /// Continues from a position.
    pub fn new(from: Option<Position>) -> Self {
        match from {
            Some(Position { lineage, revision }) => Self { lineage, revision: Some(revision) },
            None => Self::default(),
        }
    }

    /// Takes note of a message that has been folded.
    pub fn see(&mut self, message: &Down) {
        match message {
            Down::Welcome(welcome) => {
                // not resumed: what is known is replaced by the reset, and is of no history until then
                if !welcome.resumed {
                    self.revision = None;
                }
                self.lineage.clone_from(&welcome.lineage);
            }
            Down::Reset { revision, .. } => self.revision = Some(*revision),
            Down::Reached(revision) => self.raise(*revision),
            Down::Event(event) => self.raise(Revision(event.revision.0.saturating_sub(1))),
        }
    }

    /// Where it stands; `None` before the first reset.
    pub fn position(&self) -> Option<Position> {
        self.revision.map(|revision| Position { lineage: self.lineage.clone(), revision })
    }

    fn raise(&mut self, to: Revision) {
        // without a reset nothing is known that could be raised
        self.revision = self.revision.map(|revision| revision.max(to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome(lineage: &str, resumed: bool) -> Down {
        let cluster = ClusterFacts {
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            cluster_dns: None,
            cluster_domain: "cluster.local".into(),
            api: "127.0.0.1:6443".parse().unwrap(),
            loopback: false,
            node_ca_pem: String::new(),
            server_ca_pem: String::new(),
        };
        Down::Welcome(Welcome { lineage: lineage.into(), cluster, resumed })
    }

    #[test]
    fn a_position_is_what_is_known_for_sure() {
        let mut progress = Progress::new(None);
        let at = |progress: &Progress| progress.position().map(|at| (at.lineage, at.revision.0));
        progress.see(&welcome("a", false));
        assert_eq!(at(&progress), None, "nothing is known before the reset");
        progress.see(&Down::Reset { revision: Revision(7), objects: Vec::new() });
        progress.see(&Down::Reached(Revision(9)));
        assert_eq!(at(&progress), Some(("a".into(), 9)));
        progress.see(&welcome("b", true));
        assert_eq!(at(&progress), Some(("b".into(), 9)), "a resumed position holds in the new lineage");
        progress.see(&welcome("c", false));
        assert_eq!(at(&progress), None);
        progress.see(&Down::Reset { revision: Revision(3), objects: Vec::new() });
        assert_eq!(at(&progress), Some(("c".into(), 3)), "a master may be restored from older data");
    }
}
