//! The answer to a packet that cannot be brought to its host (RFC 792, RFC 1122): programs that connect are told at once, and a
//! Service tries its next endpoint. Pure.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of an IPv4 header without options, and of ICMP's.
const IP_HEAD: usize = 20;
const ICMP_HEAD: usize = 8;
/// What is told of the packet beside its header: its ports are in it.
const TOLD: usize = 8;
const HOPS: u8 = 64;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Destination unreachable: the host.
const HOST_UNREACHABLE: [u8; 2] = [3, 1];

/// What is said of an IPv4 packet of TCP or UDP whose destination is out of reach, as if by that destination: an address of this host
/// would not be believed. `None` for what must not be answered: other protocols, and fragments after the first.
pub fn host_unreachable(packet: &[u8]) -> Option<Bytes> {
    let head = usize::from(packet.first()? & 0x0f) * 4;
    let is_ipv4 = packet[0] >> 4 == 4 && head >= IP_HEAD;
    let told = packet.get(..head + TOLD).filter(|_| is_ipv4)?;
    let is_first = u16::from_be_bytes([told[6], told[7]]) & 0x1fff == 0;
    if !is_first || !matches!(told[9], TCP | UDP) {
        return None;
    }
    let bytes = IP_HEAD + ICMP_HEAD + told.len();
    let mut answer = BytesMut::with_capacity(bytes);
    answer.put_slice(&[0x45, 0]);
    // a header has 60 bytes at most
    answer.put_u16(u16::try_from(bytes).ok()?);
    answer.put_slice(&[0, 0, 0, 0, HOPS, ICMP, 0, 0]);
    answer.put_slice(&told[16..20]);
    answer.put_slice(&told[12..16]);
    let sum = checksum(&answer);
    answer[10..12].copy_from_slice(&sum);
    answer.put_slice(&HOST_UNREACHABLE);
    answer.put_slice(&[0; ICMP_HEAD - HOST_UNREACHABLE.len()]);
    answer.put_slice(told);
    let sum = checksum(&answer[IP_HEAD..]);
    answer[IP_HEAD + 2..IP_HEAD + 4].copy_from_slice(&sum);
    Some(answer.freeze())
}

/// The internet's checksum (RFC 1071) of bytes in which it is zero yet.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8, fragment: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 42, 128, 2, 10, 42, 129, 9];
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet.extend([0x9c, 0x40, 0x1f, 0x40, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        packet
    }

    #[test]
    fn who_connects_is_answered_in_the_name_of_the_host() {
        for protocol in [TCP, UDP] {
            let asked = packet(protocol, 0x4000);
            let answer = host_unreachable(&asked).unwrap();
            assert_eq!(answer.len(), 20 + 8 + 28);
            assert_eq!(answer[..4], [0x45, 0, 0, 56]);
            assert_eq!((answer[9], &answer[12..16], &answer[16..20]), (1, &asked[16..20], &asked[12..16]));
            assert_eq!(answer[20..22], [3, 1]);
            assert_eq!(answer[28..], asked[..28]);
            // with the sum in it, the sum is nothing
            assert_eq!((checksum(&answer[..20]), checksum(&answer[20..])), ([0, 0], [0, 0]));
        }
    }

    #[test]
    fn what_must_not_be_answered_is_not() {
        let mut options = packet(TCP, 0);
        options[0] = 0x4f;
        for (what, packet) in [
            ("ICMP", packet(ICMP, 0)),
            ("a later fragment", packet(UDP, 0x2001)),
            ("less than its ports", packet(TCP, 0)[..27].to_vec()),
            ("a header longer than it", options),
            ("IPv6", [vec![0x65], packet(TCP, 0)[1..].to_vec()].concat()),
            ("nothing", Vec::new()),
        ] {
            assert_eq!(host_unreachable(&packet), None, "{what}");
        }
    }
}
