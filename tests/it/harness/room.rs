//! A namespace of a cluster that several tests share, since most tests do not mind each other.

use super::{Server, User, has_docker};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A namespace, gone with what is in it when dropped; with the last room goes the cluster.
pub struct Room {
    user: User,
    server: Arc<Server>,
    namespace: String,
}

impl Room {
    /// A namespace of a privileged server with Docker; `None`, with a word why, where the tests have neither.
    pub fn enter(namespace: &str) -> Option<Self> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        if !has_docker() {
            return None;
        }
        let server = {
            let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            shared.upgrade().unwrap_or_else(|| {
                let server = Arc::new(Server::start_privileged());
                *shared = Arc::downgrade(&server);
                server
            })
        };
        let mut user = server.user();
        user.kubectl(&["create", "namespace", namespace]);
        let own = user.path("kubeconfig");
        std::fs::copy(&user.kubeconfig, &own).unwrap();
        user.kubeconfig = own.into();
        user.kubectl(&["config", "set-context", "--current", "--namespace", namespace]);
        Some(Self { user, server, namespace: namespace.to_owned() })
    }

    /// The server.
    pub fn server(&self) -> &Server {
        &self.server
    }
}

impl std::ops::Deref for Room {
    type Target = User;

    fn deref(&self) -> &User {
        &self.user
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // the cluster may be about to go with everything
        if Arc::strong_count(&self.server) > 1 {
            self.user.kubectl_output(&["delete", "pods", "--all", "--force", "--grace-period=0", "--wait=false"]);
            self.user.kubectl_output(&["delete", "namespace", &self.namespace, "--wait=false"]);
        }
    }
}
