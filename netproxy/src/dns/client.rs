//! Asks a name server: one question over UDP or TCP, or all addresses of a name. Bounded by whoever calls.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// Length of a DNS message over TCP is two bytes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 65535;
/// Addresses of one name and kind that are looked at.
const ADDRESSES_MAX: usize = 16;

/// How a server is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Sends `packet` and returns the answer to it.
async fn ask(server: SocketAddr, packet: &[u8], transport: Transport) -> std::io::Result<Vec<u8>> {
    match transport {
        Transport::Udp => ask_udp(server, packet).await,
        Transport::Tcp => ask_tcp(server, packet).await,
    }
}

async fn ask_udp(server: SocketAddr, packet: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    // A fresh port and a connected socket: only the server's own packets arrive.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(packet).await?;
    let mut answer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length > 2 && answer[..2] == packet[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, packet: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = u16::try_from(packet.len()).map_err(std::io::Error::other)?.to_be_bytes().to_vec();
    framed.extend_from_slice(packet);
    stream.write_all(&framed).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// A question for `query`, to be answered completely.
pub(crate) fn question(query: Query) -> Message {
    let mut message = Message::new(unforeseen(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(query);
    message
}

/// Asks a question and reads the answer to it, which may be a refusal.
pub(crate) async fn exchange(server: SocketAddr, question: &Message, transport: Transport) -> std::io::Result<Message> {
    let packet = question.to_vec().map_err(std::io::Error::other)?;
    let answer = Message::from_vec(&ask(server, &packet, transport).await?).map_err(std::io::Error::other)?;
    if answer.metadata.message_type != MessageType::Response || answer.queries != question.queries {
        return Err(std::io::Error::other("the answer is not to the question"));
    }
    Ok(answer)
}

/// All addresses of a full name, IPv4 first. None at all: there is no such name, or it has no address.
///
/// # Errors
/// When the server could not answer; another one may.
pub(crate) async fn addresses(server: SocketAddr, name: &Name) -> std::io::Result<Vec<IpAddr>> {
    let (v4, v6) =
        tokio::join!(records(server, name.clone(), RecordType::A), records(server, name.clone(), RecordType::AAAA));
    match (v4, v6) {
        (Ok(mut addresses), v6) => {
            addresses.extend(v6.unwrap_or_default());
            Ok(addresses)
        }
        // Some servers choke on AAAA, few on A.
        (Err(_), Ok(v6)) if !v6.is_empty() => Ok(v6),
        (Err(error), _) => Err(error),
    }
}

async fn records(server: SocketAddr, name: Name, kind: RecordType) -> std::io::Result<Vec<IpAddr>> {
    let question = question(Query::query(name, kind));
    let mut answer = exchange(server, &question, Transport::Udp).await?;
    if answer.metadata.truncation {
        answer = exchange(server, &question, Transport::Tcp).await?;
    }
    match answer.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Ok(Vec::new()),
        code => return Err(std::io::Error::other(format!("{server} answered {code}"))),
    }
    Ok(addresses_in(&answer))
}

/// The addresses of an answer. Aliases come with what they lead to; whoever was asked was chosen, so the answer is taken whole.
pub(crate) fn addresses_in(answer: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(v4) => Some(IpAddr::V4(v4.0)),
        RData::AAAA(v6) => Some(IpAddr::V6(v6.0)),
        _ => None,
    };
    answer.answers.iter().filter_map(|record| address(&record.data)).take(ADDRESSES_MAX).collect()
}

/// A number that nobody outside foresees.
fn unforeseen() -> u16 {
    RandomState::new().hash_one(0_u8) as u16
}
