// SPDX-License-Identifier: Apache-2.0
//! Whether a guest that serves still answers: a TLS handshake now and then, at the address where clients reach it.
//!
//! A connection that the guest closes is an answer, too: it has no room, or finishes. What counts is silence. Nothing is
//! verified, and nothing is learnt of the guest but that it has answered.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attested_channel::tls;
use rustls::pki_types::ServerName;
use tokio::sync::mpsc::Sender;
use tokio_rustls::TlsConnector;

use crate::door::{Door, Visit};

/// What is told of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    /// It did not answer twice in a row.
    Silent,
    /// It answers again.
    Answers,
    /// It has not answered for as long as is allowed. Nothing is told after this.
    Lost,
}

/// How it is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Between an answer, or a miss, and the next question.
    pub(crate) every: Duration,
    /// How long an answer may take.
    pub(crate) patience: Duration,
    /// How long a guest may be silent; zero: for ever.
    pub(crate) limit: Duration,
}

impl Pace {
    pub(crate) fn with_limit(seconds: u64) -> Self {
        Self { every: EVERY, patience: PATIENCE, limit: Duration::from_secs(seconds) }
    }
}

/// Asks until nobody listens or the guest is lost.
pub(crate) async fn watch(door: Door, pace: Pace, tell: Sender<Beat>) {
    let (mut heard, mut misses) = (Instant::now(), 0_u32);
    loop {
        tokio::time::sleep(pace.every).await;
        let beat = if answers(door, pace.patience).await {
            let was_silent = misses >= SILENT_AFTER;
            (heard, misses) = (Instant::now(), 0);
            was_silent.then_some(Beat::Answers)
        } else {
            misses = misses.saturating_add(1);
            let lost = misses > SILENT_AFTER && !pace.limit.is_zero() && heard.elapsed() >= pace.limit;
            if lost { Some(Beat::Lost) } else { (misses == SILENT_AFTER).then_some(Beat::Silent) }
        };
        let Some(beat) = beat else { continue };
        if tell.send(beat).await.is_err() || beat == Beat::Lost {
            return;
        }
    }
}

async fn answers(door: Door, patience: Duration) -> bool {
    answers_at(door.knock(), patience).await
}

async fn answers_at(knock: impl Future<Output = io::Result<Visit>>, patience: Duration) -> bool {
    let Ok(config) = tls::client_config() else { return true };
    let Ok(name) = ServerName::try_from(SERVER_NAME) else { return true };
    let shake = async {
        let visit = knock.await.ok()?;
        // Refused or cut off is an answer, also where that comes before anything was said.
        if let Ok(stream) = visit.say_whose().await {
            drop(TlsConnector::from(Arc::new(config)).connect(name, stream).await);
        }
        Some(())
    };
    matches!(tokio::time::timeout(patience, shake).await, Ok(Some(())))
}

const EVERY: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(10);
const SILENT_AFTER: u32 = 2;
const SERVER_NAME: &str = "chrysalis.invalid";

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, SocketAddrV4};
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    /// Takes connections; closes them, or holds them without a word.
    async fn guest() -> (SocketAddrV4, Arc<AtomicBool>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("no IPv4") };
        let hangs = Arc::new(AtomicBool::new(false));
        let hang = Arc::clone(&hangs);
        tokio::spawn(async move {
            let mut held = Vec::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if hang.load(Ordering::SeqCst) {
                    held.push(stream);
                }
            }
        });
        (address, hangs)
    }

    fn open(address: SocketAddrV4) -> Door {
        Door { address, header: false }
    }

    #[tokio::test]
    async fn where_connections_say_whose_they_are_it_says_nobodys() {
        use proxy_protocol::{Heard, Source, hear};
        for header in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("no IPv4") };
            let asked = tokio::spawn(answers(Door { address, header }, Duration::from_secs(10)));
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut first = [0; 17];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut first).await.unwrap();
            let (said, handshake) = if header { first.split_at(16) } else { (&first[..0], &first[..]) };
            assert_eq!(hear(said) == Ok(Heard::Whole(Source::Local)), header);
            assert_eq!(handshake[0], 22, "the type of a handshake's record");
            drop(stream);
            assert!(asked.await.unwrap());
        }
    }

    fn pace(limit: Duration) -> Pace {
        Pace { every: Duration::from_millis(5), patience: Duration::from_millis(200), limit }
    }

    #[tokio::test]
    async fn silence_is_told_and_so_is_its_end() {
        let (address, hangs) = guest().await;
        let (tell, mut told) = mpsc::channel(1);
        tokio::spawn(watch(open(address), pace(Duration::ZERO), tell));
        hangs.store(true, Ordering::SeqCst);
        assert_eq!(told.recv().await, Some(Beat::Silent));
        hangs.store(false, Ordering::SeqCst);
        assert_eq!(told.recv().await, Some(Beat::Answers));
    }

    #[tokio::test]
    async fn a_guest_that_stays_silent_is_lost() {
        let (address, hangs) = guest().await;
        hangs.store(true, Ordering::SeqCst);
        let (tell, mut told) = mpsc::channel(1);
        tokio::spawn(watch(open(address), pace(Duration::from_millis(700)), tell));
        assert_eq!(told.recv().await, Some(Beat::Silent));
        assert_eq!(told.recv().await, Some(Beat::Lost));
        assert_eq!(told.recv().await, None);
    }

    #[tokio::test]
    async fn where_nobody_listens_nobody_answers() {
        let (address, _hangs) = guest().await;
        assert!(answers(open(address), Duration::from_secs(10)).await, "closed at once");
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let SocketAddr::V4(gone) = gone else { panic!("no IPv4") };
        assert!(!answers(open(gone), Duration::from_secs(10)).await);
    }

    /// As QEMU does with a port that is forwarded, where nobody in the guest listens.
    #[tokio::test]
    async fn a_connection_that_is_reset_before_anything_was_said_is_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("no IPv4") };
        let reset = || async {
            let visit = Door { address, header: true }.knock().await?;
            let (stream, _) = listener.accept().await?;
            // Closed so, it is reset; on loopback the other end knows at once.
            stream.set_zero_linger()?;
            drop(stream);
            Ok(visit)
        };
        reset().await.unwrap().say_whose().await.unwrap_err();
        assert!(answers_at(reset(), Duration::from_secs(10)).await);
    }
}
