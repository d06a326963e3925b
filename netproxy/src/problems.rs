//! What went wrong without stopping anything: ports the kernel refused, certificates that do not parse. Each is told once for
//! as long as it lasts; the agent makes Kubernetes Events of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;

/// One lasting trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whose it is.
    pub about: About,
    /// One line for a person.
    pub message: String,
}

/// Whose trouble it is; with `at` it tells one problem from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum About {
    /// A listener of a Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Where it should listen.
        at: SocketAddr,
    },
    /// A host port of a pod.
    HostPort {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        pod: String,
        /// Where it should listen.
        at: SocketAddr,
    },
    /// A listener of a pod; the pod is still reached in-process and through Services.
    Pod(SocketAddr),
    /// A listener of the ingress.
    Ingress(SocketAddr),
    /// The listener of the DNS server.
    Dns(SocketAddr),
    /// A TLS Secret, `namespace/name`.
    Certificate(String),
}

/// The problems there are, and whether each has been told.
#[derive(Default)]
pub(crate) struct Problems(Mutex<BTreeMap<About, (String, bool)>>);

impl Problems {
    /// Remembers; the same trouble again is not news.
    pub(crate) fn add(&self, about: About, message: String) {
        let mut all = self.lock();
        match all.get(&about) {
            Some((old, _)) if *old == message => {}
            _ => {
                tracing::warn!(?about, "{message}");
                all.insert(about, (message, false));
            }
        }
    }

    /// The trouble is over.
    pub(crate) fn clear(&self, about: &About) {
        self.lock().remove(about);
    }

    /// Forgets every problem for which `gone` holds.
    pub(crate) fn clear_if(&self, gone: impl Fn(&About) -> bool) {
        self.lock().retain(|about, _| !gone(about));
    }

    /// Those not told yet.
    pub(crate) fn news(&self) -> Vec<Problem> {
        let mut news = Vec::new();
        for (about, (message, told)) in self.lock().iter_mut() {
            if !std::mem::replace(told, true) {
                news.push(Problem { about: about.clone(), message: message.clone() });
            }
        }
        news
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<About, (String, bool)>> {
        // Nothing panics while it is held; a poisoned lock's map would be whole anyway.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
