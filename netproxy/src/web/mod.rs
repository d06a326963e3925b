//! HTTP: `serve` speaks it to clients, `forward` finds someone who answers, `upstream` speaks it to sockets, `headers` keeps what
//! belongs to one hop from the next, `upgrade` carries what is no HTTP any more, `reply` is every response's body.

pub(crate) mod forward;
pub(crate) mod headers;
pub(crate) mod reply;
pub(crate) mod serve;
pub(crate) mod upgrade;
pub(crate) mod upstream;
