//! One packet in one datagram, or in two where it is too large for the path. Pure.
//!
//! ```text
//! whole    1, id u16, packet
//! first    2, id u16, the packet's first part, its header in it
//! second   3, id u16, source u32, destination u32, the rest
//! ```
//! All numbers are big-endian. The id is the sender's count of packets; whoever passes a packet on keeps it, and may cut what is
//! whole. Each frame tells source and destination, so that a relay needs no memory. Parts may come in any order.

use bytes::{BufMut, Bytes, BytesMut};
use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Bytes in front of a packet.
pub const HEAD_BYTES: usize = 3;
/// Bytes in front of a second part.
const SECOND_HEAD_BYTES: usize = HEAD_BYTES + 8;
/// Largest packet of the pod network, bytes. Devices are made smaller.
pub const PACKET_BYTES_MAX: usize = 1500;
/// Packets of one sender of which one part is awaited.
const HALVES_MAX: usize = 256;
/// How long it is.
const HALF_AGE_MAX: Duration = Duration::from_secs(2);
/// A first part holds the longest IPv4 header.
const FIRST_BYTES_MIN: usize = 60;

const WHOLE: u8 = 1;
const FIRST: u8 = 2;
const SECOND: u8 = 3;

/// Where a packet is from and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// From.
    pub source: Ipv4Addr,
    /// To.
    pub destination: Ipv4Addr,
}

/// The ends of an IPv4 packet, or of a part with its header; `None` when it is neither.
pub fn ends(packet: &[u8]) -> Option<Ends> {
    let header = packet.first_chunk::<20>()?;
    let header_bytes = usize::from(header[0] & 0xf) * 4;
    if header[0] >> 4 != 4 || header_bytes < header.len() {
        return None;
    }
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    Some(Ends { source: address(12), destination: address(16) })
}

/// The ends of an IPv4 packet that is exactly as long as it says.
pub fn whole_ends(packet: &[u8]) -> Option<Ends> {
    let said = u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]);
    if usize::from(said) != packet.len() || packet.len() > PACKET_BYTES_MAX {
        return None;
    }
    ends(packet)
}

/// Makes a frame of a packet that has [`HEAD_BYTES`] of room in front.
pub fn whole(mut room_and_packet: BytesMut, id: u16) -> Bytes {
    if let Some(head) = room_and_packet.first_chunk_mut::<HEAD_BYTES>() {
        let [high, low] = id.to_be_bytes();
        *head = [WHOLE, high, low];
    }
    room_and_packet.freeze()
}

/// Cuts a frame with a whole packet in two; `None` when it is not one, or too small to be cut.
pub fn cut(frame: &Bytes) -> Option<[Bytes; 2]> {
    let (head, packet) = frame.split_first_chunk::<HEAD_BYTES>()?;
    let [WHOLE, id @ ..] = head else { return None };
    let Ends { source, destination } = ends(packet)?;
    let (first, rest) = packet.split_at_checked(packet.len().div_ceil(2).max(FIRST_BYTES_MIN))?;
    let mut one = BytesMut::with_capacity(HEAD_BYTES + first.len());
    one.put_u8(FIRST);
    one.put_slice(id);
    one.put_slice(first);
    let mut two = BytesMut::with_capacity(SECOND_HEAD_BYTES + rest.len());
    two.put_u8(SECOND);
    two.put_slice(id);
    two.put_slice(&source.octets());
    two.put_slice(&destination.octets());
    two.put_slice(rest);
    Some([one.freeze(), two.freeze()])
}

/// The ends that a frame tells, for whoever passes it on; `None` when it is no frame.
pub fn frame_ends(frame: &[u8]) -> Option<Ends> {
    match frame.split_first_chunk::<HEAD_BYTES>()? {
        ([WHOLE, ..], packet) => whole_ends(packet),
        ([FIRST, ..], part) if part.len() <= PACKET_BYTES_MAX => ends(part),
        ([SECOND, ..], rest) if rest.len() <= PACKET_BYTES_MAX => Some(told_ends(rest.first_chunk()?)),
        _ => None,
    }
}

fn told_ends(told: &[u8; 8]) -> Ends {
    let [a, b, c, d, e, f, g, h] = *told;
    Ends { source: Ipv4Addr::new(a, b, c, d), destination: Ipv4Addr::new(e, f, g, h) }
}

/// Makes packets of one sender's frames.
#[derive(Default)]
pub struct Assembly {
    halves: HashMap<(Ends, u16), Half>,
    /// In the order of their coming; some may be gone.
    order: VecDeque<((Ends, u16), Instant)>,
}

enum Half {
    First(Bytes),
    Second(Bytes),
}

/// What a frame gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Assembled {
    /// A packet, as long as it says.
    Packet(Ends, Bytes),
    /// The other part is awaited.
    Awaited,
    /// No frame, or parts that do not fit.
    Malformed,
}

impl Assembly {
    /// Takes a frame.
    pub fn take(&mut self, frame: &Bytes, now: Instant) -> Assembled {
        let (Some(ends), Some(([kind, high, low], _))) = (frame_ends(frame), frame.split_first_chunk::<HEAD_BYTES>())
        else {
            return Assembled::Malformed;
        };
        let half = match *kind {
            FIRST => Half::First(frame.slice(HEAD_BYTES..)),
            SECOND => Half::Second(frame.slice(SECOND_HEAD_BYTES..)),
            _ => return Assembled::Packet(ends, frame.slice(HEAD_BYTES..)),
        };
        let key = (ends, u16::from_be_bytes([*high, *low]));
        let (first, second) = match (half, self.halves.remove(&key)) {
            (Half::First(first), Some(Half::Second(second))) | (Half::Second(second), Some(Half::First(first))) => {
                (first, second)
            }
            // the first of the two, or one whose id has come round
            (half, _) => {
                self.keep(key, half, now);
                return Assembled::Awaited;
            }
        };
        let mut packet = BytesMut::with_capacity(first.len() + second.len());
        packet.put_slice(&first);
        packet.put_slice(&second);
        match whole_ends(&packet) {
            Some(_) => Assembled::Packet(ends, packet.freeze()),
            None => Assembled::Malformed,
        }
    }

    fn keep(&mut self, key: (Ends, u16), half: Half, now: Instant) {
        while let Some((oldest, came)) = self.order.front() {
            let is_old = now.saturating_duration_since(*came) > HALF_AGE_MAX;
            if !is_old && self.order.len() < HALVES_MAX {
                break;
            }
            self.halves.remove(oldest);
            self.order.pop_front();
        }
        self.order.push_back((key, now));
        self.halves.insert(key, half);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An IPv4 packet of `bytes` from one address to another, filled with a pattern.
    pub fn packet(source: &str, destination: &str, bytes: usize) -> Vec<u8> {
        let mut packet: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
        packet[12..16].copy_from_slice(&source.parse::<Ipv4Addr>().unwrap().octets());
        packet[16..20].copy_from_slice(&destination.parse::<Ipv4Addr>().unwrap().octets());
        packet
    }

    /// The same with room in front.
    pub fn with_room(packet: &[u8]) -> BytesMut {
        let mut bytes = BytesMut::zeroed(HEAD_BYTES);
        bytes.extend_from_slice(packet);
        bytes
    }

    fn frame(bytes: usize, id: u16) -> (Vec<u8>, Bytes) {
        let packet = packet("10.42.1.5", "10.42.2.6", bytes);
        let frame = whole(with_room(&packet), id);
        (packet, frame)
    }

    #[test]
    fn a_packet_survives_whole_and_cut_in_any_order() {
        let now = Instant::now();
        for bytes in [20, 61, 576, 1380, 1500] {
            let (packet, frame) = frame(bytes, 0xabcd);
            let ends = whole_ends(&packet).unwrap();
            let expected = Assembled::Packet(ends, packet.into());
            assert_eq!(frame_ends(&frame), Some(ends));
            assert_eq!(Assembly::default().take(&frame, now), expected);
            let Some([one, two]) = cut(&frame) else {
                assert!(bytes < FIRST_BYTES_MIN);
                continue;
            };
            assert!(one.len() <= 760 && two.len() <= 770, "{} {}", one.len(), two.len());
            assert_eq!((frame_ends(&one), frame_ends(&two)), (Some(ends), Some(ends)));
            for [early, late] in [[&one, &two], [&two, &one]] {
                let mut assembly = Assembly::default();
                assert_eq!(assembly.take(early, now), Assembled::Awaited);
                assert_eq!(assembly.take(early, now), Assembled::Awaited);
                assert_eq!(assembly.take(late, now), expected);
            }
        }
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        let (good, _) = frame(100, 1);
        let wrong = |change: fn(&mut Vec<u8>)| {
            let mut packet = good.clone();
            change(&mut packet);
            whole(with_room(&packet), 1)
        };
        for (what, frame) in [
            ("version", wrong(|packet| packet[0] = 0x65)),
            ("header length", wrong(|packet| packet[0] = 0x44)),
            ("longer than it says", wrong(|packet| packet.push(0))),
            ("shorter than it says", wrong(|packet| packet.truncate(99))),
            ("too large", whole(with_room(&packet("1.1.1.1", "2.2.2.2", PACKET_BYTES_MAX + 1)), 1)),
            ("nothing", Bytes::new()),
            ("head only", Bytes::from_static(&[WHOLE, 0, 1])),
            ("short second", Bytes::from_static(&[SECOND, 0, 1, 1, 2, 3])),
            ("unknown kind", Bytes::from_static(&[9, 0, 1, 0x45, 0, 0, 20])),
        ] {
            assert_eq!(Assembly::default().take(&frame, Instant::now()), Assembled::Malformed, "{what}");
            assert_eq!(frame_ends(&frame), None, "{what}");
        }
    }

    #[test]
    fn parts_that_do_not_belong_together_make_no_packet() {
        let now = Instant::now();
        let [one, _] = cut(&frame(1000, 7).1).unwrap();
        let [_, longer] = cut(&frame(1300, 7).1).unwrap();
        let mut assembly = Assembly::default();
        assembly.take(&one, now);
        assert_eq!(assembly.take(&longer, now), Assembled::Malformed);
        let [_, other_id] = cut(&frame(1000, 8).1).unwrap();
        assembly.take(&one, now);
        assert_eq!(assembly.take(&other_id, now), Assembled::Awaited);
    }

    #[test]
    fn lone_parts_are_bounded_in_number_and_age() {
        let mut now = Instant::now();
        let mut assembly = Assembly::default();
        let parts = |id| cut(&frame(1000, id).1).unwrap();
        for id in 0..1000 {
            assembly.take(&parts(id)[0], now);
            assert!(assembly.halves.len() <= HALVES_MAX && assembly.order.len() <= HALVES_MAX);
        }
        assert_eq!(assembly.take(&parts(0)[1], now), Assembled::Awaited, "pushed out");
        assert!(matches!(assembly.take(&parts(999)[1], now), Assembled::Packet(..)));
        now += HALF_AGE_MAX * 2;
        assembly.take(&parts(5000)[0], now);
        assert_eq!(assembly.halves.len(), 1);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_taken_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..4_u8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            let frame = Bytes::from(bytes);
            let mut assembly = Assembly::default();
            assembly.take(&frame, Instant::now());
            assembly.take(&frame, Instant::now());
            cut(&frame);
        }
    }
}
