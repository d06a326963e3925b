//! A long cable between a machine and its switch, and the weather on it: frames are lost, late, doubled, out of order, and
//! read by others.
//!
//! Two devices of this process in the switch's namespace, each on a bridge; what comes out of one goes into the other.

use super::server::ip;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Largest frame.
const FRAME_BYTES_MAX: usize = 65_535;
/// Frames that are kept of what passed.
const SEEN_MAX: usize = 200_000;
// of an Ethernet frame: where its type is, where the protocol of the IPv4 packet in it
const ETHER_TYPE: usize = 12;
const PROTOCOL: usize = 23;
const IPV4: [u8; 2] = [8, 0];
const UDP: u8 = 17;

/// What one direction of a cable does to frames. Of a hundred frames, or milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// So many are lost.
    pub lost: u8,
    /// So many come twice.
    pub doubled: u8,
    /// So many overtake those before them.
    pub early: u8,
    /// How late the others are.
    pub late_ms: u16,
    /// UDP does not pass.
    pub no_udp: bool,
}

/// A cable, gone when dropped.
pub struct Cable {
    /// From the machine, and to it.
    ways: [Arc<Way>; 2],
    namespace: String,
    plug: String,
    devices: [String; 2],
    bridge: String,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Way {
    weather: Mutex<Weather>,
    seen: Mutex<Seen>,
}

/// What has passed one way.
#[derive(Clone, Default)]
pub struct Seen {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    kept: Option<Vec<Vec<u8>>>,
}

impl Seen {
    /// Whether any frame that was kept holds those bytes.
    pub fn holds(&self, word: &[u8]) -> bool {
        self.kept.iter().flatten().any(|frame| frame.windows(word.len()).any(|part| part == word))
    }
}

impl Cable {
    /// Lengthens the cable of a plug on the bridge `br0` of a namespace. The name is unique and short.
    pub fn lay(namespace: &str, plug: &str, name: &str) -> Self {
        let devices = ["a", "b"].map(|end| format!("{name}{end}"));
        let bridge = format!("{name}w");
        let [near, far] = devices.each_ref().map(|name| Arc::new(open(namespace, name)));
        ip(&["-n", namespace, "link", "add", &bridge, "type", "bridge"]);
        ip(&["-n", namespace, "link", "set", &bridge, "up"]);
        ip(&["-n", namespace, "link", "set", &devices[0], "master", &bridge, "up"]);
        ip(&["-n", namespace, "link", "set", &devices[1], "master", "br0", "up"]);
        ip(&["-n", namespace, "link", "set", plug, "master", &bridge]);
        let ways = [Arc::new(Way::default()), Arc::new(Way::default())];
        let mut threads = Vec::new();
        for (way, from, to) in [(&ways[0], &near, &far), (&ways[1], &far, &near)] {
            let (sender, receiver) = channel();
            let (way, from, to) = (way.clone(), from.clone(), to.clone());
            threads.push(std::thread::spawn(move || take(&way, &from, &sender)));
            threads.push(std::thread::spawn(move || give(&receiver, &to)));
        }
        Self { ways, namespace: namespace.into(), plug: plug.into(), devices, bridge, threads }
    }

    /// The weather both ways from now on.
    pub fn set(&self, weather: Weather) {
        self.set_ways(weather, weather);
    }

    /// The weather for what the machine sends, and for what it is sent.
    pub fn set_ways(&self, out: Weather, back: Weather) {
        for (way, weather) in self.ways.iter().zip([out, back]) {
            *way.weather.lock().unwrap() = weather;
        }
    }

    /// From now on frames are kept, to be looked at.
    pub fn listen(&self) {
        for way in &self.ways {
            *way.seen.lock().unwrap() = Seen { kept: Some(Vec::new()), ..Seen::default() };
        }
    }

    /// What has passed from the machine, and to it.
    pub fn seen(&self) -> [Seen; 2] {
        self.ways.each_ref().map(|way| way.seen.lock().unwrap().clone())
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        ip(&["-n", &self.namespace, "link", "set", &self.plug, "master", "br0"]);
        // with its device a reader ends
        for device in self.devices.iter().chain([&self.bridge]) {
            ip(&["-n", &self.namespace, "link", "delete", device]);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn open(namespace: &str, name: &str) -> SyncDevice {
    let namespace = File::open(Path::new("/run/netns").join(namespace)).unwrap();
    std::thread::scope(|scope| {
        let made = scope.spawn(move || {
            // of this thread alone, which ends with the device made
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            DeviceBuilder::new().name(name).layer(Layer::L2).enable(false).build_sync().unwrap()
        });
        made.join().unwrap()
    })
}

/// A frame that is due: when, and its place among those of that moment.
type Due = Reverse<(Instant, u64, Vec<u8>)>;

/// Takes what comes, until the device is gone.
fn take(way: &Way, from: &SyncDevice, to: &Sender<Due>) {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut dice = Dice(0x2545_F491_4F6C_DD1D);
    let mut number = 0;
    while let Ok(length) = from.recv(&mut buffer) {
        let frame = &buffer[..length];
        let weather = *way.weather.lock().unwrap();
        let is_udp = frame.get(ETHER_TYPE..ETHER_TYPE + 2) == Some(&IPV4) && frame.get(PROTOCOL) == Some(&UDP);
        way.note(frame);
        if dice.falls(weather.lost) || (weather.no_udp && is_udp) {
            continue;
        }
        let late = if dice.falls(weather.early) { weather.late_ms / 4 } else { weather.late_ms };
        for _ in 0..if dice.falls(weather.doubled) { 2 } else { 1 } {
            number += 1;
            let due = Instant::now() + Duration::from_millis(late.into());
            if to.send(Reverse((due, number, frame.to_vec()))).is_err() {
                return;
            }
        }
    }
}

/// Gives each frame on when it is due.
fn give(from: &Receiver<Due>, to: &SyncDevice) {
    let mut waiting: BinaryHeap<Due> = BinaryHeap::new();
    loop {
        let next = waiting.peek().map(|Reverse((due, ..))| due.saturating_duration_since(Instant::now()));
        let came = match next {
            Some(left) => from.recv_timeout(left),
            None => from.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match came {
            Ok(frame) => waiting.push(frame),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        while waiting.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
            let Some(Reverse((_, _, frame))) = waiting.pop() else { break };
            // a device that is gone or full loses it, as cables do
            let _ = to.send(&frame);
        }
    }
}

impl Way {
    fn note(&self, frame: &[u8]) {
        let mut seen = self.seen.lock().unwrap();
        seen.frames += 1;
        seen.bytes += frame.len() as u64;
        if let Some(kept) = seen.kept.as_mut().filter(|kept| kept.len() < SEEN_MAX) {
            kept.push(frame.to_vec());
        }
    }
}

/// The same throws in every run (xorshift).
struct Dice(u64);

impl Dice {
    fn falls(&mut self, percent: u8) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) % 100 < percent.into()
    }
}
