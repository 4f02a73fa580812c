// SPDX-License-Identifier: Apache-2.0
//! Waiting for a future on whatever thread calls, a runtime's own threads included.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use tokio::runtime::Handle;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls `future` on this thread until it is done, or `limit` has passed. Timers and sockets are the runtime's.
pub(super) fn wait<F: Future>(handle: &Handle, limit: Duration, future: F) -> Option<F::Output> {
    let _entered = handle.enter();
    let mut future = pin!(tokio::time::timeout(limit, future));
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result.ok();
        }
        thread::park();
    }
}
