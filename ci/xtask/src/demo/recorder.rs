// SPDX-License-Identifier: Apache-2.0
//! A relay on loopback that keeps all that passes, as every host can.

use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;

/// What passed, one entry for each direction of each connection.
type Taken = Arc<Mutex<Vec<Vec<u8>>>>;

/// A relay to one address. It goes with the program.
pub(crate) struct Recorder {
    address: SocketAddr,
    taken: Taken,
}

impl Recorder {
    /// Listens on a port of its own.
    pub(crate) fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("recorder")?;
        let (address, taken) = (listener.local_addr().context("recorder")?, Taken::default());
        let kept = Arc::clone(&taken);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Who cannot be reached is not answered, as without a relay.
                let Ok(server) = TcpStream::connect(target) else { continue };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (Ok(from), Ok(back)) = (client.try_clone(), server.try_clone()) else { continue };
                for (from, to) in [(from, server), (back, client)] {
                    let kept = Arc::clone(&kept);
                    std::thread::spawn(move || pass(from, to, &kept));
                }
            }
        });
        Ok(Self { address, taken })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What passed so far.
    pub(crate) fn taken(&self) -> Vec<Vec<u8>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, kept: &Taken) {
    let lock = || kept.lock().unwrap_or_else(PoisonError::into_inner);
    let place = {
        let mut kept = lock();
        kept.push(Vec::new());
        kept.len().saturating_sub(1)
    };
    let mut buffer = vec![0; 8 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let bytes = buffer.get(..length).unwrap_or_default();
        if let Some(stream) = lock().get_mut(place) {
            stream.extend(bytes);
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    // The other side may be gone.
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_of_every_connection_are_kept_whole() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let recorder = Recorder::start(server.local_addr().unwrap()).unwrap();
        for number in 0..3_u8 {
            let mut client = TcpStream::connect(recorder.address()).unwrap();
            let (mut accepted, _) = server.accept().unwrap();
            client.write_all(&[number; 20_000]).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut heard = Vec::new();
            accepted.read_to_end(&mut heard).unwrap();
            assert_eq!(heard, [number; 20_000]);
            accepted.write_all(&[number + 10; 30_000]).unwrap();
            drop(accepted);
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            assert_eq!(answer, [number + 10; 30_000]);
        }
        let mut taken = recorder.taken();
        taken.sort();
        let mut expected = vec![];
        expected.extend((0..3).map(|number| vec![number; 20_000]));
        expected.extend((10..13).map(|number| vec![number; 30_000]));
        assert_eq!(taken, expected);
    }
}
