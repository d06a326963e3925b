//! Packets, taken apart and made: what has to be known to say whose one is, datagrams whole and in fragments, echoes. Pure.

use bytes::{Bytes, BytesMut};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, TcpPacket, UDP_HEADER_LEN, UdpPacket, UdpRepr,
};
use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

const IPV4_HEADER_BYTES: usize = 20;
const HOP_LIMIT: u8 = 64;
/// Datagrams of which fragments are awaited.
const PARTIAL_MAX: usize = 64;
/// Fragments of one datagram.
const FRAGMENTS_MAX: usize = 64;
/// What is not whole by then is forgotten.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(5);

/// What a packet is, as far as this node has to know.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet {
    /// Of a TCP connection.
    Tcp {
        /// Who sent it.
        from: SocketAddrV4,
        /// To whom.
        to: SocketAddrV4,
        /// It asks for a new connection.
        opens: bool,
        /// It ends one.
        resets: bool,
    },
    /// A datagram.
    Udp {
        /// Who sent it.
        from: SocketAddrV4,
        /// To whom.
        to: SocketAddrV4,
        /// What it says.
        payload: Bytes,
    },
    /// Somebody asks whether an address is there. The answer.
    Echo(BytesMut),
}

/// Reads a packet. `None`: it is none, it is of no interest, or it is a fragment of a datagram that is not whole yet.
pub fn read(packet: &Bytes, fragments: &mut Fragments, headroom: usize, now: Instant) -> Option<Packet> {
    let ip = Ipv4Packet::new_checked(&packet[..]).ok().filter(|ip| ip.version() == 4 && ip.verify_checksum())?;
    let (source, destination) = (ip.src_addr(), ip.dst_addr());
    let is_part = ip.more_frags() || ip.frag_offset() > 0;
    let start = usize::from(ip.header_len());
    let mut payload = packet.slice(start..usize::from(ip.total_len()));
    if is_part {
        let key = Key { source, destination, id: ip.ident(), protocol: ip.next_header().into() };
        payload = fragments.add(key, usize::from(ip.frag_offset()), ip.more_frags(), payload, now)?;
    }
    match ip.next_header() {
        IpProtocol::Tcp if !is_part => {
            let tcp = TcpPacket::new_checked(&payload[..]).ok()?;
            Some(Packet::Tcp {
                from: SocketAddrV4::new(source, tcp.src_port()),
                to: SocketAddrV4::new(destination, tcp.dst_port()),
                opens: tcp.syn() && !tcp.ack(),
                resets: tcp.rst(),
            })
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(&payload[..]).ok()?;
            if !udp.verify_checksum(&source.into(), &destination.into()) || udp.dst_port() == 0 {
                return None;
            }
            let (from, to) = (udp.src_port(), udp.dst_port());
            let end = usize::from(udp.len());
            Some(Packet::Udp {
                from: SocketAddrV4::new(source, from),
                to: SocketAddrV4::new(destination, to),
                payload: payload.slice(UDP_HEADER_LEN..end),
            })
        }
        IpProtocol::Icmp if !is_part => echo(&payload, destination, source, headroom).map(Packet::Echo),
        _ => None,
    }
}

/// The answer to an echo request.
fn echo(payload: &[u8], from: Ipv4Addr, to: Ipv4Addr, headroom: usize) -> Option<BytesMut> {
    let sums = ChecksumCapabilities::default();
    let Icmpv4Repr::EchoRequest { ident, seq_no, data } =
        Icmpv4Repr::parse(&Icmpv4Packet::new_checked(payload).ok()?, &sums).ok()?
    else {
        return None;
    };
    let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
    let mut packet = head(from, to, IpProtocol::Icmp, reply.buffer_len(), headroom);
    reply.emit(&mut Icmpv4Packet::new_unchecked(&mut packet[headroom + IPV4_HEADER_BYTES..]), &sums);
    Some(packet)
}

/// Room, an IPv4 header, and space for so many bytes after it.
fn head(from: Ipv4Addr, to: Ipv4Addr, protocol: IpProtocol, bytes: usize, headroom: usize) -> BytesMut {
    let mut packet = BytesMut::zeroed(headroom + IPV4_HEADER_BYTES + bytes);
    let ip = Ipv4Repr { src_addr: from, dst_addr: to, next_header: protocol, payload_len: bytes, hop_limit: HOP_LIMIT };
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut packet[headroom..]), &ChecksumCapabilities::default());
    packet
}

/// A datagram as packets of at most `mtu` bytes, each behind `headroom` bytes of room. `id` tells the fragments of one from those of
/// another. None where it is too large to be one.
pub fn datagram(
    from: SocketAddrV4,
    to: SocketAddrV4,
    payload: &[u8],
    id: u16,
    mtu: usize,
    headroom: usize,
) -> Vec<BytesMut> {
    let bytes = UDP_HEADER_LEN + payload.len();
    if bytes + IPV4_HEADER_BYTES > usize::from(u16::MAX) {
        return Vec::new();
    }
    let udp = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let mut whole = head(*from.ip(), *to.ip(), IpProtocol::Udp, bytes, headroom);
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut whole[headroom + IPV4_HEADER_BYTES..]),
        &(*from.ip()).into(),
        &(*to.ip()).into(),
        payload.len(),
        |room| room.copy_from_slice(payload),
        &ChecksumCapabilities::default(),
    );
    if IPV4_HEADER_BYTES + bytes <= mtu {
        return vec![whole];
    }
    // offsets count eights
    let piece = (mtu - IPV4_HEADER_BYTES) / 8 * 8;
    let body = &whole[headroom + IPV4_HEADER_BYTES..];
    let parts = body.chunks(piece).enumerate();
    parts
        .map(|(number, part)| {
            let mut packet = head(*from.ip(), *to.ip(), IpProtocol::Udp, part.len(), headroom);
            packet[headroom + IPV4_HEADER_BYTES..].copy_from_slice(part);
            let mut ip = Ipv4Packet::new_unchecked(&mut packet[headroom..]);
            ip.set_ident(id);
            ip.set_dont_frag(false);
            ip.set_more_frags((number + 1) * piece < body.len());
            // below 65,536, since the whole is
            ip.set_frag_offset(u16::try_from(number * piece).unwrap_or(u16::MAX));
            ip.fill_checksum();
            packet
        })
        .collect()
}

/// Datagrams of which not all fragments are there.
#[derive(Default)]
pub struct Fragments(HashMap<Key, Partial>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    id: u16,
    protocol: u8,
}

struct Partial {
    begun: Instant,
    pieces: BTreeMap<usize, Bytes>,
    /// Bytes of the whole, known with the last fragment.
    total: Option<usize>,
}

impl Fragments {
    fn add(&mut self, key: Key, offset: usize, more: bool, piece: Bytes, now: Instant) -> Option<Bytes> {
        self.0.retain(|_, partial| now.saturating_duration_since(partial.begun) < PARTIAL_AGE_MAX);
        if self.0.len() >= PARTIAL_MAX && !self.0.contains_key(&key) {
            return None;
        }
        let new = || Partial { begun: now, pieces: BTreeMap::new(), total: None };
        let partial = self.0.entry(key).or_insert_with(new);
        if !more {
            partial.total = Some(offset + piece.len());
        }
        partial.pieces.insert(offset, piece);
        if partial.pieces.len() > FRAGMENTS_MAX {
            self.0.remove(&key);
            return None;
        }
        let total = partial.total?;
        let mut whole = BytesMut::with_capacity(total.min(usize::from(u16::MAX)));
        for (at, piece) in &partial.pieces {
            if *at > whole.len() {
                return None;
            }
            // fragments that overlap are nobody's honest work
            if *at < whole.len() || at + piece.len() > usize::from(u16::MAX) {
                self.0.remove(&key);
                return None;
            }
            whole.extend_from_slice(piece);
        }
        if whole.len() != total {
            return None;
        }
        self.0.remove(&key);
        Some(whole.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice;

    fn ends() -> (SocketAddrV4, SocketAddrV4) {
        ("10.42.1.2:5353".parse().unwrap(), "10.42.2.9:53".parse().unwrap())
    }

    fn read_all(packets: &[BytesMut], headroom: usize) -> Vec<Packet> {
        let mut fragments = Fragments::default();
        let packets = packets.iter().map(|packet| packet.clone().freeze().slice(headroom..));
        packets.filter_map(|packet| read(&packet, &mut fragments, headroom, Instant::now())).collect()
    }

    #[test]
    fn a_datagram_arrives_as_it_was_whatever_its_size_and_order() {
        let (from, to) = ends();
        for bytes in [0, 1, 1352, 1353, 9000, 65_507] {
            let payload: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            let mut packets = datagram(from, to, &payload, 7, 1380, 5);
            assert!(packets.iter().all(|packet| packet.len() <= 1380 + 5));
            let expected = [Packet::Udp { from, to, payload: payload.into() }];
            assert_eq!(read_all(&packets, 5), expected, "{bytes}");
            packets.reverse();
            assert_eq!(read_all(&packets, 5), expected, "{bytes} backwards");
        }
        assert!(datagram(from, to, &[0; 65_508], 7, 1380, 0).is_empty());
    }

    #[test]
    fn what_is_broken_is_nothing() {
        let (from, to) = ends();
        let whole = datagram(from, to, b"word", 7, 1380, 0).remove(0);
        for at in [0, 8, 12, 22, 26, 30] {
            let mut broken = whole.clone();
            broken[at] ^= 0xff;
            assert_eq!(read_all(slice::from_ref(&broken), 0), [], "byte {at}");
        }
        for bytes in 0..whole.len() {
            let mut short = whole.clone();
            short.truncate(bytes);
            assert_eq!(read_all(slice::from_ref(&short), 0), [], "{bytes} bytes");
        }
        let parts = datagram(from, to, &[1; 5000], 7, 1380, 0);
        assert_eq!(read_all(&[parts[0].clone(), parts[1].clone(), parts[3].clone()], 0), []);
    }

    #[test]
    fn an_echo_is_answered() {
        let request = Icmpv4Repr::EchoRequest { ident: 3, seq_no: 4, data: b"there?" };
        let (asker, asked) = (Ipv4Addr::new(10, 42, 1, 2), Ipv4Addr::new(10, 42, 2, 9));
        let mut packet = head(asker, asked, IpProtocol::Icmp, request.buffer_len(), 0);
        let sums = ChecksumCapabilities::default();
        request.emit(&mut Icmpv4Packet::new_unchecked(&mut packet[IPV4_HEADER_BYTES..]), &sums);
        let read = read_all(&[packet], 0);
        let [Packet::Echo(reply)] = &read[..] else { panic!("{read:?}") };
        let ip = Ipv4Packet::new_checked(&reply[..]).unwrap();
        assert_eq!((ip.src_addr(), ip.dst_addr()), (asked, asker));
        let reply = Icmpv4Repr::parse(&Icmpv4Packet::new_checked(ip.payload()).unwrap(), &sums).unwrap();
        assert_eq!(reply, Icmpv4Repr::EchoReply { ident: 3, seq_no: 4, data: b"there?" });
    }
}
