//! DNS packets: from a query to a response, as a pure function of the route table. No sockets here.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::dns::names::{self, Found, Srv};
use crate::table::Table;

/// Answers may be remembered this long: endpoints change.
const TTL_SECONDS: u32 = 5;
/// What fits every path without fragments; the most we send over UDP.
const UDP_BYTES_MAX: u16 = 1232;
/// Without EDNS.
const UDP_BYTES_MIN: u16 = 512;

/// What to do with a query.
pub(crate) enum Reply {
    /// Send this.
    Answer(Message),
    /// Ask someone outside, pass their answer on.
    Forward,
    /// An alias to a name outside: ask for the other name, put its answer behind this one.
    ForwardAlias(Message, Query),
}

/// A query that can be read, or the packet to answer one that cannot; None: not worth an answer.
pub(crate) fn read(packet: &[u8]) -> Result<Message, Option<Vec<u8>>> {
    match Message::from_vec(packet) {
        Ok(message) if message.metadata.message_type == MessageType::Query => Ok(message),
        Ok(_) => Err(None),
        // Garbage with at least the header of a query gets its number back.
        Err(_) => match packet {
            [a, b, flags, _, _, _, _, _, _, _, _, _, ..] if flags & 0x80 == 0 => {
                Err(Message::error_msg(u16::from_be_bytes([*a, *b]), OpCode::Query, ResponseCode::FormErr)
                    .to_vec()
                    .ok())
            }
            _ => Err(None),
        },
    }
}

/// Answers `query` from the table. `turn` says which of several addresses comes first.
pub(crate) fn answer(table: &Table, domain: &str, message: &Message, turn: usize) -> Reply {
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&message.metadata);
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&message.queries);
    if message.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX);
        reply.edns = Some(edns);
    }
    let refuse = |mut reply: Message, code| {
        reply.metadata.response_code = code;
        Reply::Answer(reply)
    };
    if message.metadata.op_code != OpCode::Query {
        return refuse(reply, ResponseCode::NotImp);
    }
    let [query] = message.queries.as_slice() else { return refuse(reply, ResponseCode::FormErr) };
    if query.query_class != DNSClass::IN {
        return refuse(reply, ResponseCode::NotImp);
    }
    let name = plain(&query.name);
    let found = names::lookup(table, domain, &name);
    if found == Found::Foreign {
        return Reply::Forward;
    }
    reply.metadata.authoritative = true;
    let absent = found == Found::Absent;
    let alias = fill(&mut reply, query, found, table, domain, turn);
    if let Some(alias) = alias {
        let inside = names::lookup(table, domain, &plain(&alias));
        let next = Query::query(alias, query.query_type);
        if inside == Found::Foreign {
            return Reply::ForwardAlias(reply, next);
        }
        fill(&mut reply, &next, inside, table, domain, turn);
    }
    if reply.answers.is_empty() {
        if absent {
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
        reply.authorities.extend(soa(domain));
    }
    Reply::Answer(reply)
}

/// Adds the records that answer `query`. Returns the alias to go on with, if that is what there is.
fn fill(reply: &mut Message, query: &Query, found: Found, table: &Table, domain: &str, turn: usize) -> Option<Name> {
    let kind = query.query_type;
    let any = kind == RecordType::ANY;
    let record = |data| Record::from_rdata(query.name.clone(), TTL_SECONDS, data);
    match found {
        Found::Addresses(mut addresses) => {
            if kind == RecordType::SRV {
                add_srv(reply, query, names::ports(table, domain, &plain(&query.name)));
                return None;
            }
            if !addresses.is_empty() {
                let first = turn % addresses.len();
                addresses.rotate_left(first);
            }
            let of_kind = addresses.into_iter().map(address).filter(|data| any || data.record_type() == kind);
            reply.answers.extend(of_kind.map(record));
        }
        Found::Alias(alias) => {
            let alias = Name::from_ascii(format!("{alias}.")).ok()?;
            reply.answers.push(record(RData::CNAME(CNAME(alias.clone()))));
            return (kind != RecordType::CNAME && !any).then_some(alias);
        }
        Found::Ports(ports) if kind == RecordType::SRV || any => add_srv(reply, query, ports),
        Found::Pointer(name) if kind == RecordType::PTR || any => {
            reply.answers.extend(Name::from_ascii(format!("{name}.")).ok().map(|name| record(RData::PTR(PTR(name)))));
        }
        Found::Nothing if plain(&query.name) == domain => match kind {
            RecordType::SOA => reply.answers.extend(soa(domain)),
            RecordType::NS => {
                reply.answers.extend(server(domain).map(|server| record(RData::NS(NS(server)))));
            }
            _ => {}
        },
        _ => {}
    }
    None
}

fn add_srv(reply: &mut Message, query: &Query, ports: Vec<Srv>) {
    for srv in ports {
        let Ok(target) = Name::from_ascii(format!("{}.", srv.target)) else { continue };
        let data = RData::SRV(SRV::new(0, 100, srv.port, target.clone()));
        reply.answers.push(Record::from_rdata(query.name.clone(), TTL_SECONDS, data));
        let addresses = srv.addresses.into_iter().map(address);
        reply.additionals.extend(addresses.map(|data| Record::from_rdata(target.clone(), TTL_SECONDS, data)));
    }
}

fn address(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

fn server(domain: &str) -> Option<Name> {
    Name::from_ascii(format!("ns.dns.{domain}.")).ok()
}

/// Says who is responsible and how long "no" may be remembered.
fn soa(domain: &str) -> Option<Record> {
    let zone = Name::from_ascii(format!("{domain}.")).ok()?;
    let mailbox = Name::from_ascii(format!("hostmaster.{domain}.")).ok()?;
    let data = SOA::new(server(domain)?, mailbox, 1, 7200, 1800, 86400, TTL_SECONDS);
    Some(Record::from_rdata(zone, TTL_SECONDS, RData::SOA(data)))
}

/// Lower case, without the final dot.
fn plain(name: &Name) -> String {
    let mut name = name.to_ascii().to_ascii_lowercase();
    if name.ends_with('.') {
        name.pop();
    }
    name
}

/// The most bytes a client that sent `message` over UDP takes.
pub(crate) fn udp_limit(message: &Message) -> usize {
    let said = message.edns.as_ref().map_or(UDP_BYTES_MIN, Edns::max_payload);
    said.clamp(UDP_BYTES_MIN, UDP_BYTES_MAX).into()
}

/// Bytes of `reply`, no more than `limit`: then empty and marked as truncated, so that the client asks again over TCP.
pub(crate) fn write(reply: &Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    let mut short = reply.clone();
    short.metadata.truncation = true;
    (short.answers, short.authorities, short.additionals) = Default::default();
    short.to_vec().ok()
}
