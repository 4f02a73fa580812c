// SPDX-License-Identifier: Apache-2.0
//! Connections of serve: one thread reads, one writes, so that a slow proof holds back no signature.

use std::{
    io::Write as _,
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use attester_protocol::{Failure, Outcome, Request, Response, ServingAnswer, ServingRequest, frame};

use crate::{batch, serving::Serving};

/// Accepts connections for ever; above [`MAX_CONNECTIONS`] a new one is closed at once.
pub(crate) fn accept(listener: &UnixListener, serving: &Arc<Serving>) {
    let open = Arc::new(());
    for stream in listener.incoming().flatten() {
        if Arc::strong_count(&open) > MAX_CONNECTIONS {
            continue;
        }
        let (serving, slot) = (Arc::clone(serving), Arc::clone(&open));
        // When no thread can be started the connection is closed, and serve sees it.
        let _ = thread::Builder::new().name("serve".to_owned()).spawn(move || {
            converse(stream, &serving);
            drop(slot);
        });
    }
}

fn converse(stream: UnixStream, serving: &Serving) {
    let (sender, receiver) = sync_channel(MAX_UNSENT);
    let stream = Arc::new(stream);
    let writing = Arc::clone(&stream);
    let writer = thread::Builder::new().name("answers".to_owned()).spawn(move || write_all(&writing, &receiver));
    let peer = Peer { stream, sender };
    if writer.is_ok() {
        peer.answer_all(serving);
    }
    // The writer ends when the last open proof was delivered, or the peer is gone.
}

#[derive(Clone)]
struct Peer {
    stream: Arc<UnixStream>,
    sender: SyncSender<Vec<u8>>,
}

impl Peer {
    /// Answers until the peer closes the connection, or sends what is no request.
    fn answer_all(&self, serving: &Serving) {
        let mut held = Vec::new();
        while let Ok(Some(Request { id, body })) = frame::read(&mut &*self.stream) {
            let peer = self.clone();
            // Answered by the thread that makes quotes, later than asked for.
            if matches!(body, ServingRequest::Prove { .. } | ServingRequest::Successor { .. }) {
                serving.answer(body, &mut held, move |answer| peer.offer(encode(id, answer)));
            } else {
                serving.answer(body, &mut held, move |answer| drop(peer.sender.send(encode(id, answer))));
            }
        }
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// Never blocks: a peer that does not read its answers must not hold back the proofs of others. It is cut off.
    fn offer(&self, frame: Vec<u8>) {
        if self.sender.try_send(frame).is_err() {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

fn write_all(stream: &UnixStream, receiver: &Receiver<Vec<u8>>) {
    let mut writing = stream;
    for frame in receiver {
        if writing.write_all(&frame).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fn encode(id: u64, answer: Result<ServingAnswer, Failure>) -> Vec<u8> {
    let outcome = answer.map_or_else(Outcome::Failed, Outcome::Done);
    frame::encode(&Response { id, outcome }).unwrap_or_else(|_| {
        let failed = Response::<ServingAnswer> { id, outcome: Outcome::Failed(Failure::TooLarge) };
        frame::encode(&failed).unwrap_or_default()
    })
}

/// Most connections at once. Serve needs a handful.
const MAX_CONNECTIONS: usize = 64;
/// Most answers of one connection that its peer has not read: a whole batch of proofs, and as much again.
const MAX_UNSENT: usize = 2 * batch::MAX_WAITING;
