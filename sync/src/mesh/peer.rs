//! When to dial another node, which of two connections to keep, when not to trust one: a state machine. No sockets, no clock.
//!
//! Nothing is dialled before a packet wants to go there. Until a connection is up, and whenever one does not answer, packets go
//! by the relay. Both ends follow the same rules, so they settle on one connection without a word.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Two connections made within this time are of dials that crossed.
const CROSSED: Duration = Duration::from_secs(3);
/// A connection that does not answer for this long, or for [`SUSPECT_ROUND_TRIPS`], is not used until it does.
const SUSPECT: Duration = Duration::from_millis(1500);
const SUSPECT_ROUND_TRIPS: u32 = 4;
/// A connection that has carried nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(300);
/// One that ends before this age counts as failed.
const SOUND: Duration = Duration::from_secs(30);
/// The first wait after a failure; it doubles.
const WAIT_MIN: Duration = Duration::from_secs(1);
/// The longest.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Names a connection, to its owner.
pub type LinkId = u64;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Connect to any of these; then tell [`Peer::connected`] or [`Peer::dial_failed`].
    Dial(Vec<SocketAddr>),
    /// This one is not needed.
    Close(LinkId, Why),
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Another one stays.
    Duplicate,
    /// Nobody uses it.
    Idle,
}

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Over the master.
    Relay,
    /// Over this connection.
    Direct(LinkId),
}

/// What a connection has counted since it is up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Sent, of what must be answered.
    pub sent: u64,
    /// Answers.
    pub answers: u64,
    /// Packets both ways.
    pub packets: u64,
    /// The path's.
    pub round_trip: Duration,
}

/// Another node, as seen from here.
#[derive(Debug)]
pub struct Peer {
    /// When dials have crossed, ours stays: the lesser name's.
    ours_stays: bool,
    endpoints: Vec<SocketAddr>,
    dial: Dial,
    failures: u32,
    link: Option<Link>,
}

#[derive(Debug, PartialEq, Eq)]
enum Dial {
    Idle,
    UnderWay,
    Wait { until: Instant },
}

#[derive(Debug)]
struct Link {
    id: LinkId,
    by_us: bool,
    since: Instant,
    seen: Sample,
    used_at: Instant,
    unanswered_since: Option<Instant>,
    is_suspect: bool,
}

impl Peer {
    /// A node called `name`, seen from the one called `own`.
    pub fn new(own: &str, name: &str) -> Self {
        Self { ours_stays: own < name, endpoints: Vec::new(), dial: Dial::Idle, failures: 0, link: None }
    }

    /// Where it says that it may be reached. New places are tried without waiting.
    pub fn set_endpoints(&mut self, endpoints: Vec<SocketAddr>) {
        if self.endpoints == endpoints {
            return;
        }
        self.endpoints = endpoints;
        self.failures = 0;
        if let Dial::Wait { .. } = self.dial {
            self.dial = Dial::Idle;
        }
    }

    /// Whether a packet should be told to [`Peer::wanted`].
    pub fn is_curious(&self, now: Instant) -> bool {
        self.is_dialable(now) || (self.link.is_some() && !self.is_busy(now))
    }

    /// Whether it could not be reached the last time, and nothing else is known since: without the relay, packets are lost.
    pub fn is_out_of_reach(&self) -> bool {
        self.link.is_none() && (self.failures > 0 || self.endpoints.is_empty())
    }

    fn is_dialable(&self, now: Instant) -> bool {
        let is_free = match self.dial {
            Dial::Idle => true,
            Dial::UnderWay => false,
            Dial::Wait { until } => until <= now,
        };
        is_free && self.link.is_none() && !self.endpoints.is_empty()
    }

    /// When it may be dialled again after a failure; None once [`Peer::waited`] knows that it may.
    pub fn dialable_at(&self) -> Option<Instant> {
        match self.dial {
            Dial::Wait { until } if self.link.is_none() && !self.endpoints.is_empty() => Some(until),
            _ => None,
        }
    }

    /// To be told when [`Peer::dialable_at`] has come: there is nothing to wait for any more.
    pub fn waited(&mut self, now: Instant) {
        if matches!(self.dial, Dial::Wait { until } if until <= now) {
            self.dial = Dial::Idle;
        }
    }

    /// A packet is on its way there.
    pub fn wanted(&mut self, now: Instant) -> Option<Act> {
        if let Some(link) = &mut self.link {
            link.used_at = now;
        }
        if !self.is_dialable(now) {
            return None;
        }
        self.dial = Dial::UnderWay;
        Some(Act::Dial(self.endpoints.clone()))
    }

    /// None of the endpoints answered, or what did was not this node.
    pub fn dial_failed(&mut self, now: Instant) {
        self.wait(now);
    }

    /// A connection is up; `by_us` says who dialled it.
    pub fn connected(&mut self, now: Instant, id: LinkId, by_us: bool) -> Option<Act> {
        if by_us {
            self.dial = Dial::Idle;
        }
        let stays = self.link.as_ref().is_some_and(|link| {
            let crossed = link.by_us != by_us && now.saturating_duration_since(link.since) <= CROSSED;
            // who dials again later has lost the connection that we still see
            crossed && by_us != self.ours_stays && !link.is_suspect
        });
        if stays {
            return Some(Act::Close(id, Why::Duplicate));
        }
        let link = Link {
            id,
            by_us,
            since: now,
            seen: Sample::default(),
            used_at: now,
            unanswered_since: None,
            is_suspect: false,
        };
        self.link.replace(link).map(|old| Act::Close(old.id, Why::Duplicate))
    }

    /// A connection has ended.
    pub fn closed(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.link.take_if(|link| link.id == id) else { return };
        if now.saturating_duration_since(link.since) >= SOUND {
            self.failures = 0;
        } else if link.by_us && self.dial != Dial::UnderWay {
            self.wait(now);
        }
    }

    /// What a connection has counted; to be told every now and then while it is up.
    pub fn sample(&mut self, now: Instant, id: LinkId, sample: Sample) -> Option<Act> {
        let link = self.link.as_mut().filter(|link| link.id == id)?;
        if sample.answers != link.seen.answers {
            link.is_suspect = false;
            link.unanswered_since = None;
        } else if sample.sent != link.seen.sent {
            link.unanswered_since.get_or_insert(now);
        }
        let patience = SUSPECT.max(sample.round_trip * SUSPECT_ROUND_TRIPS);
        if link.unanswered_since.is_some_and(|since| now.saturating_duration_since(since) >= patience) {
            link.is_suspect = true;
        }
        if sample.packets != link.seen.packets {
            link.used_at = now;
        }
        link.seen = sample;
        if now.saturating_duration_since(link.used_at) < IDLE {
            return None;
        }
        self.link = None;
        Some(Act::Close(id, Why::Idle))
    }

    /// The connection there is, whether it answers or not.
    pub fn link(&self) -> Option<LinkId> {
        self.link.as_ref().map(|link| link.id)
    }

    /// Where packets go now.
    pub fn path(&self) -> Path {
        match &self.link {
            Some(link) if !link.is_suspect => Path::Direct(link.id),
            _ => Path::Relay,
        }
    }

    /// Whether the connection there is has been used lately, or does not answer: then samples are worth their price.
    pub fn is_busy(&self, now: Instant) -> bool {
        const LATELY: Duration = Duration::from_secs(10);
        self.link.as_ref().is_some_and(|link| {
            link.is_suspect || link.unanswered_since.is_some() || now.saturating_duration_since(link.used_at) < LATELY
        })
    }

    fn wait(&mut self, now: Instant) {
        let wait = WAIT_MIN.saturating_mul(1 << self.failures.min(16)).min(WAIT_MAX);
        self.failures += 1;
        self.dial = Dial::Wait { until: now + wait };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn reachable(own: &str, name: &str) -> Peer {
        let mut peer = Peer::new(own, name);
        peer.set_endpoints(vec!["192.0.2.7:6444".parse().unwrap()]);
        peer
    }

    fn busy(sent: u64, answers: u64) -> Sample {
        Sample { sent, answers, packets: sent, round_trip: seconds(0.01) }
    }

    #[test]
    fn the_first_packet_dials_and_failures_wait_longer_and_longer() {
        let mut now = Instant::now();
        assert_eq!(Peer::new("a", "b").wanted(now), None, "nowhere to dial");
        let mut peer = reachable("a", "b");
        let dial = Some(Act::Dial(vec!["192.0.2.7:6444".parse().unwrap()]));
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(peer.wanted(now), dial);
            assert_eq!((peer.wanted(now), peer.path()), (None, Path::Relay), "under way");
            assert_eq!(peer.is_out_of_reach(), wait > 1, "the first dial may reach it");
            peer.dial_failed(now);
            assert!(peer.is_out_of_reach());
            assert_eq!(peer.dialable_at(), Some(now + Duration::from_secs(wait)));
            peer.waited(now + Duration::from_secs(wait) - seconds(0.001));
            assert_eq!(peer.wanted(now + Duration::from_secs(wait) - seconds(0.001)), None);
            now += Duration::from_secs(wait);
            peer.waited(now);
            assert_eq!((peer.dialable_at(), peer.is_curious(now)), (None, true), "nothing left to wake for");
        }
        peer.dial_failed(now);
        peer.set_endpoints(vec!["192.0.2.7:6444".parse().unwrap()]);
        assert!(!peer.is_dialable(now), "nothing new");
        peer.set_endpoints(vec!["192.0.2.8:6444".parse().unwrap()]);
        assert!(peer.is_dialable(now) && !peer.is_out_of_reach(), "a new place is tried at once");
    }

    #[test]
    fn a_connection_that_does_not_last_counts_as_a_failure() {
        let now = Instant::now();
        for (lived, is_dialable) in [(0.5, false), (31.0, true)] {
            let mut peer = reachable("a", "b");
            peer.wanted(now);
            assert_eq!(peer.connected(now, 1, true), None);
            assert_eq!((peer.path(), peer.wanted(now)), (Path::Direct(1), None));
            peer.closed(now + seconds(lived), 1);
            assert_eq!(peer.path(), Path::Relay);
            assert_eq!(peer.is_dialable(now + seconds(lived)), is_dialable, "lived {lived}");
        }
    }

    /// Both ends see both connections, in any order, and keep the same one.
    #[test]
    fn crossed_dials_settle_on_one() {
        let now = Instant::now();
        let later = now + seconds(0.2);
        for (first, second) in [(true, false), (false, true)] {
            let (mut a, mut b) = (reachable("a", "b"), reachable("b", "a"));
            a.wanted(now);
            b.wanted(now);
            // link 1 is dialled by a, link 2 by b
            let id = |by_a: bool| if by_a { 1 } else { 2 };
            a.connected(now, id(first), first);
            let at_a = a.connected(later, id(second), second);
            b.connected(now, id(second), !second);
            let at_b = b.connected(later, id(first), !first);
            assert_eq!((a.path(), b.path()), (Path::Direct(1), Path::Direct(1)));
            let close = Some(Act::Close(2, Why::Duplicate));
            assert_eq!((at_a, at_b), (close.clone(), close));
            a.closed(later, 2);
            assert_eq!((a.path(), a.is_dialable(later)), (Path::Direct(1), false));
        }
    }

    #[test]
    fn who_dials_again_has_lost_what_we_still_see() {
        let now = Instant::now();
        // (our name, who dialled the old one, the new one's age behind it)
        for (own, by_us, after) in [("a", true, 5.0), ("a", false, 0.1), ("z", true, 0.1), ("z", false, 5.0)] {
            let mut peer = reachable(own, "m");
            peer.connected(now, 1, by_us);
            let act = peer.connected(now + seconds(after), 2, false);
            assert_eq!((act, peer.path()), (Some(Act::Close(1, Why::Duplicate)), Path::Direct(2)), "{own} {by_us}");
        }
    }

    #[test]
    fn a_path_that_does_not_answer_is_left_and_taken_again() {
        let start = Instant::now();
        let mut peer = reachable("a", "b");
        peer.connected(start, 1, true);
        // (seconds, sent, answers, is direct)
        for (at, sent, answers, is_direct) in [
            (0.5, 10, 5, true),
            (1.0, 20, 10, true),
            (1.5, 30, 10, true),
            (2.5, 30, 10, true),
            (3.0, 40, 10, false),
            (9.0, 41, 10, false),
            (9.5, 42, 11, true),
            (10.0, 42, 11, true),
            (60.0, 42, 11, true),
        ] {
            assert_eq!(peer.sample(start + seconds(at), 1, busy(sent, answers)), None);
            assert_eq!(peer.path() == Path::Direct(1), is_direct, "at {at}");
        }
        peer.sample(start + seconds(61.0), 1, busy(43, 11));
        let slow = Sample { round_trip: seconds(1.0), ..busy(44, 11) };
        peer.sample(start + seconds(64.0), 1, slow);
        assert_eq!(peer.path(), Path::Direct(1), "four round trips are not over");
        peer.sample(start + seconds(65.5), 1, slow);
        assert_eq!(peer.path(), Path::Relay);
        assert_eq!(peer.connected(start + seconds(65.6), 2, false), Some(Act::Close(1, Why::Duplicate)));
    }

    #[test]
    fn an_unused_connection_is_closed_and_made_anew_when_wanted() {
        let start = Instant::now();
        let mut peer = reachable("a", "b");
        peer.connected(start, 1, true);
        peer.sample(start + seconds(1.0), 1, busy(10, 5));
        // keep-alives are answered and carry nothing
        let kept = |answers| Sample { answers, ..busy(10, 0) };
        assert_eq!(peer.sample(start + seconds(290.0), 1, kept(50)), None);
        assert!(!peer.is_busy(start + seconds(290.0)) && peer.is_curious(start + seconds(290.0)));
        assert_eq!(peer.sample(start + seconds(302.0), 1, kept(60)), Some(Act::Close(1, Why::Idle)));
        peer.closed(start + seconds(302.0), 1);
        assert!(peer.wanted(start + seconds(303.0)).is_some());
    }
}
