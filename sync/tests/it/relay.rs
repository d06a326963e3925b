//! A UDP relay between a node and a master: loses, delays and reorders, moves to another source port, goes deaf. Over TCP it
//! only passes on, and can be cut.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// What the relay does with packets.
#[derive(Clone, Copy, Default)]
pub struct Weather {
    /// Of 100 packets.
    pub lost: u64,
    /// Each waits so long, and up to as long again: so they overtake each other.
    pub delay: Duration,
}

pub struct Relay {
    pub address: SocketAddr,
    deaf: Arc<AtomicBool>,
    ports: Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>,
    _tasks: JoinSet<()>,
}

impl Relay {
    pub async fn start(to: SocketAddr, weather: Weather) -> Self {
        let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let deaf = Arc::new(AtomicBool::new(false));
        let ports: Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>> = Arc::default();
        let address = near.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let (is_deaf, known) = (deaf.clone(), ports.clone());
        tasks.spawn(async move {
            let dice = Arc::new(Dice(AtomicU64::new(42)));
            let mut buffer = vec![0; 65536];
            let mut backs = JoinSet::new();
            loop {
                let (length, from) = near.recv_from(&mut buffer).await.unwrap();
                if is_deaf.load(Ordering::Relaxed) {
                    continue;
                }
                let known_port = known.lock().unwrap().get(&from).cloned();
                let far = match known_port {
                    Some(far) => far,
                    None => {
                        let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                        far.connect(to).await.unwrap();
                        known.lock().unwrap().insert(from, far.clone());
                        backs.spawn(back(far.clone(), near.clone(), from, weather, dice.clone(), is_deaf.clone()));
                        far
                    }
                };
                let packet = buffer[..length].to_vec();
                if let Some(delay) = dice.throw(weather) {
                    tokio::spawn(async move {
                        tokio::time::sleep(delay).await;
                        let _ = far.send(&packet).await;
                    });
                }
            }
        });
        Self { address, deaf, ports, _tasks: tasks }
    }

    /// Nothing passes any more.
    pub fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Relaxed);
    }

    /// As a NAT that has forgotten: the same nodes come from other ports from now on.
    pub fn rebind(&self) {
        self.ports.lock().unwrap().clear();
    }
}

async fn back(
    far: Arc<UdpSocket>,
    near: Arc<UdpSocket>,
    to: SocketAddr,
    weather: Weather,
    dice: Arc<Dice>,
    deaf: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 65536];
    loop {
        // an answer that the port is closed is no end
        let Ok(length) = far.recv(&mut buffer).await else { continue };
        if deaf.load(Ordering::Relaxed) {
            continue;
        }
        let (packet, near) = (buffer[..length].to_vec(), near.clone());
        if let Some(delay) = dice.throw(weather) {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = near.send_to(&packet, to).await;
            });
        }
    }
}

/// The same fate in each run.
struct Dice(AtomicU64);

impl Dice {
    /// How long a packet is delayed; `None` when it is lost.
    fn throw(&self, weather: Weather) -> Option<Duration> {
        let next = || {
            let step = |seed: u64| seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            step(self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seed| Some(step(seed))).unwrap()) >> 33
        };
        let is_lost = next() % 100 < weather.lost;
        let delay = weather.delay + weather.delay.mul_f64((next() % 1000) as f64 / 1000.0);
        (!is_lost).then_some(delay)
    }
}
