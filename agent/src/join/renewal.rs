//! Keeps a node's certificate good, without a restart.
//!
//! [`due`] decides, purely; [`keep`] looks once an hour. A certificate of which less than a third is left is renewed with
//! itself; one that has ended, or that a master does not know (it may have been restored from older data), needs the token. A
//! node that somebody has taken out of the cluster does not come back by itself, but when its agent is started anew.

use super::token::Token;
use super::{Credentials, JoinConfig, JoinError, join, renew, request};
use crate::container::chain;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use sync::Identity;
use sync::node::LinkState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the certificate is looked at.
const LOOK: Duration = Duration::from_secs(3600);
/// First delay after an attempt that failed; doubles up to the longest.
const RETRY: Duration = Duration::from_secs(10);
/// Longest delay after an attempt that failed.
const RETRY_MAX: Duration = Duration::from_secs(1800);

/// What is to be done about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Renewal,
    Join,
}

/// What is to be done at `now`, both in seconds of Unix time. Pure.
fn due((not_before, not_after): (i64, i64), now: i64, is_refused: bool) -> Due {
    if is_refused || now >= not_after {
        Due::Join
    } else if (not_after - now) * 3 < not_after - not_before {
        Due::Renewal
    } else {
        Due::Nothing
    }
}

/// Keeps the certificate good until `shutdown`. The newest is in `identity`, whose receiver is [`sync::node::Config`]'s;
/// `state` is that link's.
pub async fn keep(
    config: JoinConfig,
    mut credentials: Credentials,
    identity: watch::Sender<Arc<Identity>>,
    mut state: watch::Receiver<LinkState>,
    shutdown: CancellationToken,
) {
    let mut was_up = false;
    let mut delay = RETRY;
    loop {
        let is_refused = {
            let state = state.borrow_and_update();
            if matches!(*state, LinkState::Up { .. }) {
                was_up = true;
                delay = RETRY;
            }
            calls_for_join(&state, was_up)
        };
        let validity = credentials.identity.chain.first().and_then(request::validity).unwrap_or_default();
        let due = due(validity, Timestamp::now().as_second(), is_refused);
        let attempt = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            attempt = act(due, &config, &credentials) => attempt,
        };
        let nap = match attempt {
            Ok(None) => LOOK,
            Ok(Some(new)) => {
                credentials = new;
                identity.send_replace(credentials.identity.clone());
                // who is refused with a new certificate too does not ask for one after the other
                if is_refused { longer(&mut delay) } else { LOOK }
            }
            Err(error) => {
                tell(due, &error);
                longer(&mut delay)
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(nap) => {}
            () = refusal(&mut state, &mut was_up, nap == LOOK) => {}
        }
    }
}

/// The delay now; the next one is longer.
fn longer(delay: &mut Duration) -> Duration {
    let next = (*delay * 2).min(RETRY_MAX);
    std::mem::replace(delay, next)
}

/// Whether the master's answer is a reason to join anew, to an agent that was let in before or was not.
fn calls_for_join(state: &LinkState, was_up: bool) -> bool {
    match state {
        LinkState::Refused(_) => true,
        LinkState::Dismissed(_) => !was_up,
        LinkState::Up { .. } | LinkState::Connecting { .. } => false,
    }
}

/// Waits until the master gives a reason to join anew, if that is wanted; for ever otherwise.
async fn refusal(state: &mut watch::Receiver<LinkState>, was_up: &mut bool, is_wanted: bool) {
    while state.changed().await.is_ok() {
        let state = state.borrow_and_update();
        *was_up |= matches!(*state, LinkState::Up { .. });
        if is_wanted && calls_for_join(&state, *was_up) {
            return;
        }
    }
    std::future::pending().await
}

async fn act(due: Due, config: &JoinConfig, credentials: &Credentials) -> Result<Option<Credentials>, JoinError> {
    match due {
        Due::Nothing => Ok(None),
        Due::Renewal => {
            let identity = renew(config, credentials).await?;
            tracing::info!("the node's certificate is renewed");
            Ok(Some(Credentials { identity, ..credentials.clone() }))
        }
        Due::Join => {
            let token = config.token.as_deref().ok_or(JoinError::NoToken).and_then(Token::parse)?;
            join(config, &credentials.host, credentials.port, &token).await.map(Some)
        }
    }
}

fn tell(due: Due, error: &JoinError) {
    let error = chain(error);
    match due {
        Due::Join => {
            tracing::error!("the node's certificate has ended or is refused, and it cannot join anew: {error}")
        }
        _ => tracing::warn!("the node's certificate cannot be renewed yet: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_its_last_third() {
        let cases = [
            (0, false, Due::Nothing),
            (199, false, Due::Nothing),
            (200, false, Due::Nothing),
            (201, false, Due::Renewal),
            (299, false, Due::Renewal),
            (300, false, Due::Join),
            (100, true, Due::Join),
            (-50, false, Due::Nothing),
        ];
        for (now, is_refused, expected) in cases {
            assert_eq!(due((0, 300), now, is_refused), expected, "at {now}");
        }
    }
}
