//! What follows a `101 Switching Protocols`: two upgraded connections, bytes both ways, counted like any other connection.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::connections::Permit;
use crate::shared::Shared;

/// Carries bytes between both sides once each has switched.
pub(crate) fn tunnel(shared: &Arc<Shared>, client: OnUpgrade, upstream: OnUpgrade, permit: Permit) {
    let connection = shared.tunnels.enter(permit);
    shared.data.spawn(async move {
        let carry = async {
            let (client, upstream) = futures::try_join!(client, upstream).ok()?;
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            tokio::io::copy_bidirectional(&mut client, &mut upstream).await.ok()
        };
        connection.drive_plain(carry).await;
    });
}
