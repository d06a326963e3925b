//! DNS packets: from a query to a response, as a pure function of the route table. No sockets here.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::dns::names::{self, Found, Srv};
use crate::table::Table;

/// Answers may be remembered this long: endpoints change.
const TTL_SECONDS: u32 = 5;
/// What fits every path without fragments; the most we send over UDP, and take.
pub(crate) const UDP_BYTES_MAX: u16 = 1232;
/// Without EDNS.
const UDP_BYTES_MIN: u16 = 512;
/// Aliases followed within the cluster from one name.
const ALIASES_MAX: usize = 8;

/// What to do with a query.
pub(crate) enum Reply {
    /// Send this.
    Answer(Message),
    /// Ask someone outside for this, and put what they say behind what is there.
    Forward(Message, Query),
}

/// Where the cluster's names come from.
pub(crate) struct Zone<'a> {
    pub(crate) table: &'a Table,
    pub(crate) domain: &'a str,
    /// The address of its name server.
    pub(crate) server: IpAddr,
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

/// Answers `message` from the zone. `turn` says which of several addresses comes first.
pub(crate) fn answer(zone: &Zone<'_>, message: &Message, turn: usize) -> Reply {
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&message.metadata);
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&message.queries);
    if let Some(asked) = &message.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX).set_dnssec_ok(asked.flags().dnssec_ok);
        reply.edns = Some(edns);
    }
    let query = match refusal(message) {
        Ok(query) => query,
        Err(code) => {
            reply.metadata.response_code = code;
            return Reply::Answer(reply);
        }
    };
    let mut query = query.clone();
    for _ in 0..=ALIASES_MAX {
        let found = names::lookup(zone.table, zone.domain, &plain(&query.name));
        if found == Found::Foreign {
            return Reply::Forward(reply, query);
        }
        reply.metadata.authoritative = true;
        let exists = found.exists();
        match fill(&mut reply, &query, found, zone, turn) {
            Some(alias) => query.name = alias,
            None => {
                if !exists {
                    reply.metadata.response_code = ResponseCode::NXDomain;
                }
                let answers = |record: &Record| [record.record_type(), RecordType::ANY].contains(&query.query_type);
                if !reply.answers.iter().any(answers) {
                    reply.authorities.extend(soa(zone.domain));
                }
                return Reply::Answer(reply);
            }
        }
    }
    // Aliases in a circle.
    reply.answers.clear();
    reply.metadata.response_code = ResponseCode::ServFail;
    Reply::Answer(reply)
}

/// The one question that is answered, or why none is.
fn refusal(message: &Message) -> Result<&Query, ResponseCode> {
    if message.metadata.op_code != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    if message.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        return Err(ResponseCode::BADVERS);
    }
    match message.queries.as_slice() {
        [query] if query.query_class != DNSClass::IN => Err(ResponseCode::NotImp),
        // The cluster's names are not handed out as a whole.
        [query] if matches!(query.query_type, RecordType::AXFR | RecordType::IXFR) => Err(ResponseCode::Refused),
        [query] => Ok(query),
        _ => Err(ResponseCode::FormErr),
    }
}

/// Adds the records that answer `query`. Returns the alias to go on with, if that is what there is.
fn fill(reply: &mut Message, query: &Query, found: Found, zone: &Zone<'_>, turn: usize) -> Option<Name> {
    let kind = query.query_type;
    let any = kind == RecordType::ANY;
    let record = |data| Record::from_rdata(query.name.clone(), TTL_SECONDS, data);
    match found {
        Found::Addresses(mut addresses) => {
            if kind == RecordType::SRV {
                add_srv(reply, query, names::ports(zone.table, zone.domain, &plain(&query.name)));
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
        Found::Text(text) if kind == RecordType::TXT || any => {
            reply.answers.push(record(RData::TXT(TXT::new(vec![text.to_owned()]))));
        }
        Found::Server => {
            let data = address(zone.server);
            reply.answers.extend((any || data.record_type() == kind).then(|| record(data)));
        }
        Found::Apex => match kind {
            RecordType::SOA => reply.answers.extend(soa(zone.domain)),
            RecordType::NS => {
                reply.answers.extend(server(zone.domain).map(|server| record(RData::NS(NS(server)))));
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
        let records = addresses.map(|data| Record::from_rdata(target.clone(), TTL_SECONDS, data));
        for record in records {
            // Several ports of one Service have one target.
            if !reply.additionals.contains(&record) {
                reply.additionals.push(record);
            }
        }
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

/// Puts behind what is already in `reply` what somebody outside said; without an answer it is a failure.
pub(crate) fn complete(mut reply: Message, outside: Option<Message>) -> Message {
    let Some(outside) = outside else {
        reply.answers.clear();
        reply.metadata.response_code = ResponseCode::ServFail;
        return reply;
    };
    let (to, from) = (&mut reply.metadata, &outside.metadata);
    to.response_code = from.response_code;
    to.truncation = from.truncation;
    to.authentic_data = from.authentic_data && reply.answers.is_empty();
    reply.answers.extend(outside.answers);
    reply.authorities.extend(outside.authorities);
    reply.additionals.extend(outside.additionals);
    reply
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

/// Bytes of `reply`, no more than `limit`. What nobody asked for is left out first; then answers, as many as must be, and it is marked
/// as truncated, so that the client asks again over TCP. (Some never do, and take those that are there.)
pub(crate) fn write(mut reply: Message, limit: usize) -> Option<Vec<u8>> {
    let fits = |reply: &Message| reply.to_vec().ok().filter(|bytes| bytes.len() <= limit);
    if let Some(bytes) = fits(&reply) {
        return Some(bytes);
    }
    reply.additionals.clear();
    if let Some(bytes) = fits(&reply) {
        return Some(bytes);
    }
    reply.authorities.clear();
    reply.metadata.truncation = true;
    let answers = std::mem::take(&mut reply.answers);
    let mut best = fits(&reply)?;
    let (mut some, mut too_many) = (0, answers.len() + 1);
    while some + 1 < too_many {
        let half = some.midpoint(too_many);
        reply.answers = answers[..half].to_vec();
        match fits(&reply) {
            Some(bytes) => (best, some) = (bytes, half),
            None => too_many = half,
        }
    }
    Some(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn what_does_not_fit_is_cut_and_says_so() {
        let name = Name::from_ascii("db.shop.svc.cluster.local.").unwrap();
        let record = |n: u32| Record::from_rdata(name.clone(), 5, RData::A(A(Ipv4Addr::from_bits(n))));
        for (answers, additionals, limit, kept, truncated) in [
            (20, 0, 512, 20, false),
            (20, 40, 512, 20, false),
            (100, 0, 512, 29, true),
            (100, 0, 1232, 74, true),
            (100, 0, 65535, 100, false),
            (1000, 0, 65535, 1000, false),
        ] {
            let mut reply = Message::response(1, OpCode::Query);
            reply.queries.push(Query::query(name.clone(), RecordType::A));
            reply.answers = (0..answers).map(record).collect();
            reply.additionals = (0..additionals).map(record).collect();
            let bytes = write(reply, limit).unwrap();
            assert!(bytes.len() <= limit);
            let read = Message::from_vec(&bytes).unwrap();
            assert_eq!((read.answers.len(), read.metadata.truncation), (kept, truncated), "{answers} in {limit}");
        }
    }
}
