//! What the host's resolvers said, remembered until it may have changed. Bounded in bytes: answers are kept as packets.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};

/// Nothing is remembered for longer, whatever it says of itself: pods see changes outside soon.
const REMEMBERED_MAX: Duration = Duration::from_secs(30);
/// What an entry costs beside its packet, roughly.
const ENTRY_BYTES: usize = 256;

/// What makes one question differ from another.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    pub(crate) query: Query,
    /// Signatures are wanted with the answer.
    pub(crate) dnssec_ok: bool,
    /// The resolver shall not judge them.
    pub(crate) checking_disabled: bool,
}

/// Answers by question.
pub(crate) struct Cache {
    known: Mutex<Known>,
    bytes_max: usize,
}

#[derive(Default)]
struct Known {
    answers: HashMap<Question, Entry>,
    bytes: usize,
}

struct Entry {
    packet: Box<[u8]>,
    since: Instant,
    until: Instant,
}

impl Cache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { known: Mutex::default(), bytes_max }
    }

    /// The answer as it is now: its records have aged.
    pub(crate) fn get(&self, question: &Question, now: Instant) -> Option<Message> {
        let (mut answer, age) = {
            let known = self.lock();
            let entry = known.answers.get(question).filter(|entry| entry.until > now)?;
            (Message::from_vec(&entry.packet).ok()?, now.saturating_duration_since(entry.since))
        };
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let sections = [&mut answer.answers, &mut answer.authorities, &mut answer.additionals];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.saturating_sub(seconds);
        }
        Some(answer)
    }

    /// Remembers an answer for as long as it allows.
    pub(crate) fn put(&self, question: Question, answer: &Message, now: Instant) {
        let lasting = lasting(answer);
        let Some(packet) = answer.to_vec().ok().filter(|_| !lasting.is_zero()) else { return };
        let bytes = packet.len() + ENTRY_BYTES;
        if bytes > self.bytes_max {
            return;
        }
        let mut known = self.lock();
        known.remove(&question);
        if known.bytes + bytes > self.bytes_max {
            known.answers.retain(|_, entry| entry.until > now);
            known.bytes = known.answers.values().map(Entry::bytes).sum();
        }
        while known.bytes + bytes > self.bytes_max {
            // Still full: forget any.
            let Some(any) = known.answers.keys().next().cloned() else { break };
            known.remove(&any);
        }
        known.bytes += bytes;
        known.answers.insert(question, Entry { packet: packet.into(), since: now, until: now + lasting });
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn remove(&mut self, question: &Question) {
        if let Some(entry) = self.answers.remove(question) {
            self.bytes -= entry.bytes();
        }
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        self.packet.len() + ENTRY_BYTES
    }
}

/// How long an answer may be remembered; zero: not at all. "No" lasts as the zone's SOA says (RFC 2308).
fn lasting(answer: &Message) -> Duration {
    let code = answer.metadata.response_code;
    let is_definite = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) && !answer.metadata.truncation;
    let asked = answer.queries.first().map(|query| query.query_type);
    let says_yes = |record: &Record| asked == Some(RecordType::ANY) || Some(record.record_type()) == asked;
    let is_no = code == ResponseCode::NXDomain || !answer.answers.iter().any(says_yes);
    let of_soa = answer.authorities.iter().filter_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    let of_answers = answer.answers.iter().map(|record| record.ttl).min();
    let seconds = match is_no {
        true => of_soa.min().map(|no| no.min(of_answers.unwrap_or(no))),
        false => of_answers,
    };
    seconds
        .filter(|_| is_definite)
        .map_or(Duration::ZERO, |seconds| Duration::from_secs(seconds.into()).min(REMEMBERED_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{MessageType, OpCode};
    use hickory_proto::rr::Name;
    use hickory_proto::rr::rdata::{A, CNAME, SOA};

    fn question(name: &str) -> Question {
        let query = Query::query(Name::from_ascii(name).unwrap(), RecordType::A);
        Question { query, dnssec_ok: false, checking_disabled: false }
    }

    fn answer(question: &Question, code: ResponseCode, answers: &[(u32, RData)], soa: Option<(u32, u32)>) -> Message {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.queries.push(question.query.clone());
        let name = question.query.name.clone();
        message.answers =
            answers.iter().map(|(ttl, data)| Record::from_rdata(name.clone(), *ttl, data.clone())).collect();
        message.authorities.extend(soa.map(|(ttl, minimum)| {
            let data = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, minimum);
            Record::from_rdata(name.clone(), ttl, RData::SOA(data))
        }));
        message
    }

    #[test]
    fn an_answer_lasts_as_long_as_it_says_within_bounds() {
        use ResponseCode::{NXDomain, NoError, ServFail};
        let asked = question("example.org.");
        let address = RData::A(A([192, 0, 2, 1].into()));
        let alias = RData::CNAME(CNAME(Name::from_ascii("other.example.org.").unwrap()));
        for (code, answers, soa, expected) in [
            (NoError, vec![(9, address.clone())], None, 9),
            (NoError, vec![(20, alias.clone()), (9, address.clone())], Some((3, 3)), 9),
            (NoError, vec![(3600, address.clone())], None, 30),
            (NoError, vec![(0, address.clone())], None, 0),
            (NoError, vec![], Some((60, 4)), 4),
            (NoError, vec![(2, alias.clone())], Some((60, 4)), 2),
            (NoError, vec![(2, alias)], None, 0),
            (NXDomain, vec![], Some((5, 4000)), 5),
            (NXDomain, vec![], None, 0),
            (ServFail, vec![(9, address)], None, 0),
        ] {
            let message = answer(&asked, code, &answers, soa);
            assert_eq!(lasting(&message).as_secs(), expected, "{code} {answers:?} {soa:?}");
        }
    }

    #[test]
    fn what_is_remembered_ages_and_stays_within_its_bound() {
        let cache = Cache::new(10 * (ENTRY_BYTES + 64));
        let start = Instant::now();
        let data = [(9, RData::A(A([192, 0, 2, 1].into())))];
        let asked = question("Example.org.");
        cache.put(asked.clone(), &answer(&asked, ResponseCode::NoError, &data, None), start);
        let after = |seconds| cache.get(&question("example.ORG."), start + Duration::from_secs(seconds));
        assert_eq!(after(4).unwrap().answers[0].ttl, 5, "whatever the case of the name");
        assert!(after(9).is_none());
        let signed = Question { dnssec_ok: true, ..asked };
        assert!(cache.get(&signed, start).is_none());
        for n in 0..100 {
            let asked = question(&format!("n{n}.example.org."));
            cache.put(asked.clone(), &answer(&asked, ResponseCode::NoError, &data, None), start);
            assert!(cache.get(&asked, start).is_some());
            let known = cache.lock();
            assert_eq!(known.bytes, known.answers.values().map(Entry::bytes).sum::<usize>());
            assert!(known.bytes <= cache.bytes_max);
        }
    }
}
