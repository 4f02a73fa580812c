// SPDX-License-Identifier: Apache-2.0
//! Bodies of requests and answers: how much of them is in memory, and for how long.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::timeout;

use crate::{
    activity::Untaken,
    shares::{Share, Shares},
};

/// A request's body, and its share of what all bodies together may take.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) bytes: Bytes,
    _share: Share,
}

/// Why a body was not read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It is larger than it may be, or broke off.
    TooLarge,
    /// There is no memory for it.
    Busy,
    /// Nothing came for a while.
    Slow,
}

/// Reads a body of at most `max` bytes, of which something comes within each `stall`. Memory for what is announced is set apart before it is read, so that no two
/// bodies wait for each other in the middle; for what comes without being announced, as it comes.
pub(crate) async fn read(
    memory: &Arc<Shares>,
    client: std::net::IpAddr,
    mut body: Incoming,
    max: usize,
    stall: Duration,
) -> Result<Whole, Unread> {
    let announced = usize::try_from(body.size_hint().lower()).map_err(|_| Unread::TooLarge)?;
    if announced > max {
        return Err(Unread::TooLarge);
    }
    let mut share = memory.wait(client, announced, TURN).await.ok_or(Unread::Busy)?;
    let mut bytes = BytesMut::with_capacity(announced);
    while let Some(frame) = timeout(stall, body.frame()).await.map_err(|_| Unread::Slow)? {
        let Ok(data) = frame.map_err(|_| Unread::TooLarge)?.into_data() else { continue };
        if data.len() > max.saturating_sub(bytes.len()) {
            return Err(Unread::TooLarge);
        }
        let needed = bytes.len().saturating_add(data.len());
        if needed > share.units() {
            let more = needed.saturating_mul(2).clamp(STEP, max.max(STEP));
            if !share.grow(more.saturating_sub(share.units()), TURN).await {
                return Err(Unread::Busy);
            }
            bytes.reserve(more.saturating_sub(bytes.len()));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Whole { bytes: bytes.freeze(), _share: share })
}

/// The body of an answer. Its memory is counted until the peer has taken it.
#[derive(Debug)]
pub(crate) struct Answered {
    rest: Bytes,
}

/// What is let go with the memory of an answer.
struct Held {
    bytes: Bytes,
    _share: Option<Share>,
    _untaken: Untaken,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Answered {
    pub(crate) fn new(bytes: Bytes, share: Option<Share>, untaken: Untaken) -> Self {
        if bytes.is_empty() {
            return Self { rest: bytes };
        }
        Self { rest: Bytes::from_owner(Held { bytes, _share: share, _untaken: untaken }) }
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = Infallible;

    /// In pieces: of a whole HTTP/1 would make a copy that nobody counts.
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.rest.len().min(PIECE);
        // What is left after the last piece would keep the whole alive.
        let piece = if length == self.rest.len() { std::mem::take(&mut self.rest) } else { self.rest.split_to(length) };
        Poll::Ready((length > 0).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.rest.len()).unwrap_or(u64::MAX))
    }
}

/// Waiting for memory.
const TURN: Duration = Duration::from_secs(5);
/// Memory for what was not announced.
const STEP: usize = 16 * 1024;
const PIECE: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::activity::{Activity, Patience};

    /// Whoever holds one piece holds the whole: its memory is counted, and its time goes on.
    #[tokio::test]
    async fn an_answer_is_counted_until_its_last_piece_is_gone() {
        let shares = Shares::new(100_000, 100_000, 0);
        let now = Instant::now();
        let activity = Activity::begin(now);
        let share = shares.take([192, 0, 2, 1].into(), 40_000);
        let mut body = Answered::new(vec![7; 40_000].into(), share, activity.answer(now));
        let patience = Patience { silent: Duration::MAX, idle: Duration::MAX, sending: Duration::ZERO };
        assert_eq!(body.size_hint().exact(), Some(40_000));
        let mut pieces = Vec::new();
        while let Some(frame) = body.frame().await {
            pieces.push(frame.unwrap().into_data().unwrap());
        }
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE, PIECE, 40_000 - 2 * PIECE]);
        drop(body);
        let last = pieces.pop();
        drop(pieces);
        assert_eq!((shares.free(), activity.is_over(&patience, now)), (60_000, true));
        drop(last);
        assert_eq!((shares.free(), activity.is_over(&patience, now)), (100_000, false));
    }
}
