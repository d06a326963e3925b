//! Packets over a TLS connection, where there are no datagrams: each after its length, `u16` big-endian. An empty one only
//! shows that the connection lives.

use crate::bulk::{Bulk, Carrier, PACKETS_MAX};
use crate::quic::{IDLE_TIME_MAX, KEEP_ALIVE};
use crate::transport::{Frames, Receiver, Sender};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{interval, timeout};

/// Bytes that are sent or read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Carries `bulk` over a stream until it breaks.
pub(crate) async fn pump(bulk: &Bulk, sender: Sender, frames: Frames) {
    let (out, leaving) = mpsc::channel(PACKETS_MAX);
    let (coming, come) = mpsc::channel(PACKETS_MAX);
    let (buffer, receiver) = frames.into_parts();
    let _carried = bulk.carry_while(Carrier::Queues { out, come: Arc::new(Mutex::new(come)) });
    tokio::select! {
        () = give(sender, leaving) => {}
        () = take(receiver, buffer, coming) => {}
    }
}

async fn give(mut sender: Sender, mut leaving: mpsc::Receiver<Bytes>) {
    let mut alive = interval(KEEP_ALIVE);
    let mut out = BytesMut::new();
    loop {
        out.clear();
        tokio::select! {
            packet = leaving.recv() => {
                let mut packet = packet;
                while let Some(bytes) = packet.take() {
                    // longer ones are not accepted for sending
                    out.put_u16(bytes.len() as u16);
                    out.put_slice(&bytes);
                    if out.len() < CHUNK_BYTES {
                        packet = leaving.try_recv().ok();
                    }
                }
                if out.is_empty() {
                    return;
                }
            }
            _ = alive.tick() => out.put_u16(0),
        }
        if sender.send(&out).await.is_err() {
            return;
        }
    }
}

async fn take(mut receiver: Receiver, mut buffer: BytesMut, coming: mpsc::Sender<Bytes>) {
    loop {
        while let Some(packet) = next(&mut buffer) {
            // as with datagrams: where nobody reads in time, packets are lost
            if !packet.is_empty() && matches!(coming.try_send(packet), Err(mpsc::error::TrySendError::Closed(_))) {
                return;
            }
        }
        buffer.reserve(CHUNK_BYTES);
        match timeout(IDLE_TIME_MAX, receiver.read_buf(&mut buffer)).await {
            Ok(Ok(bytes)) if bytes > 0 => {}
            _ => return,
        }
    }
}

fn next(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = usize::from(u16::from_be_bytes(*buffer.first_chunk::<2>()?));
    if buffer.len() < 2 + length {
        return None;
    }
    buffer.advance(2);
    Some(buffer.split_to(length).freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport;

    #[tokio::test]
    async fn packets_keep_their_borders() {
        let (near, far) = tokio::io::duplex(1000);
        let (a, b) = (Bulk::new(), Bulk::new());
        for (bulk, stream) in [(a.clone(), near), (b.clone(), far)] {
            let (sender, receiver) = transport::tls(stream);
            tokio::spawn(async move { pump(&bulk, sender, Frames::new(receiver)).await });
        }
        for bulk in [&a, &b] {
            bulk.is_up().wait_for(|is_up| *is_up).await.unwrap();
        }
        for length in [1, 900, 65_000, 3] {
            a.send(Bytes::from(vec![7; length])).unwrap();
            assert_eq!(b.recv().await.unwrap().len(), length);
        }
        b.send(Bytes::from_static(b"back")).unwrap();
        assert_eq!(a.recv().await.unwrap(), "back");
    }
}
