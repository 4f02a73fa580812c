// SPDX-License-Identifier: Apache-2.0
//! What all clients share, divided so that no one of them can take it all: connections, memory of bodies and answers.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use crate::limits::site;

/// A number of units (connections, bytes), and who holds how many. Addresses of one site count as one client.
#[derive(Debug)]
pub(crate) struct Shares {
    total: usize,
    /// A client may hold so many in any case, while there are any.
    first: usize,
    /// Beyond that a client holds at most one part in so many of what is left.
    parts: usize,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    clients: HashMap<IpAddr, Client>,
}

#[derive(Debug, Default)]
struct Client {
    held: usize,
    waiting: usize,
}

/// Units that a client holds until this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    of: Arc<Shares>,
    client: IpAddr,
    units: usize,
}

impl Shares {
    /// `total` units, of which the first client gets at most `most`, and each further one less, in proportion to what
    /// is left; up to `first` units are for whoever has fewer. With `most` = `total` there is no limit for a client.
    pub(crate) fn new(total: usize, most: usize, first: usize) -> Arc<Self> {
        // Whoever holds h of the total t has at most (t - h) / p: h = t / (p + 1).
        let parts = (total / most.max(1)).saturating_sub(1);
        Arc::new(Self { total, first, parts, state: Mutex::default(), freed: Notify::new() })
    }

    /// Takes units for a client, if it may have them now.
    pub(crate) fn take(self: &Arc<Self>, client: IpAddr, units: usize) -> Option<Share> {
        let client = site(client);
        self.add(client, units).then(|| Share { of: Arc::clone(self), client, units })
    }

    /// As [`Shares::take`], and waits for others to give some back. Of one client only [`WAITING`] wait at a time.
    pub(crate) async fn wait(self: &Arc<Self>, client: IpAddr, units: usize, limit: Duration) -> Option<Share> {
        let mut share = self.take(client, 0)?;
        share.grow(units, limit).await.then_some(share)
    }

    /// Units that nobody holds.
    pub(crate) fn free(&self) -> usize {
        self.total.saturating_sub(self.lock().used)
    }

    /// The total.
    pub(crate) const fn total(&self) -> usize {
        self.total
    }

    fn add(&self, client: IpAddr, units: usize) -> bool {
        let mut state = self.lock();
        let left = self.total.saturating_sub(state.used).checked_sub(units);
        let held = state.clients.get(&client).map_or(0, |client| client.held).saturating_add(units);
        let fits = left.is_some_and(|left| held <= self.first || held.saturating_mul(self.parts) <= left);
        if units > 0 && fits {
            state.used = state.used.saturating_add(units);
            state.clients.entry(client).or_default().held = held;
        }
        units == 0 || fits
    }

    fn give_back(&self, client: &IpAddr, units: usize) {
        if units == 0 {
            return;
        }
        let mut state = self.lock();
        state.used = state.used.saturating_sub(units);
        if let Some(own) = state.clients.get_mut(client) {
            own.held = own.held.saturating_sub(units);
        }
        state.forget(client);
        drop(state);
        self.freed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget(&mut self, client: &IpAddr) {
        if self.clients.get(client).is_some_and(|own| own.held == 0 && own.waiting == 0) {
            self.clients.remove(client);
        }
    }
}

impl Share {
    /// How many.
    pub(crate) const fn units(&self) -> usize {
        self.units
    }

    /// Adds units; `false` where the client gets none within `limit`.
    pub(crate) async fn grow(&mut self, units: usize, limit: Duration) -> bool {
        let got = match self.of.add(self.client, units) {
            true => true,
            false => tokio::time::timeout(limit, self.turn(units)).await == Ok(true),
        };
        if got {
            self.units = self.units.saturating_add(units);
        }
        got
    }

    async fn turn(&self, units: usize) -> bool {
        let Some(_place) = Place::take(&self.of, self.client) else { return false };
        loop {
            // Before the look, so that nothing that is given back after it is missed.
            let freed = self.of.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.of.add(self.client, units) {
                return true;
            }
            freed.await;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.give_back(&self.client, self.units);
    }
}

/// A client's place among those that wait.
struct Place<'a> {
    of: &'a Shares,
    client: IpAddr,
}

impl<'a> Place<'a> {
    fn take(of: &'a Shares, client: IpAddr) -> Option<Self> {
        let mut state = of.lock();
        let own = state.clients.entry(client).or_default();
        if own.waiting >= WAITING {
            return None;
        }
        own.waiting = own.waiting.saturating_add(1);
        Some(Self { of, client })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.of.lock();
        if let Some(own) = state.clients.get_mut(&self.client) {
            own.waiting = own.waiting.saturating_sub(1);
        }
        state.forget(&self.client);
    }
}

/// Who waits is woken whenever something is given back.
const WAITING: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn client(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    /// Takes single units until there are no more for this client.
    fn greedy(shares: &Arc<Shares>, number: u32) -> Vec<Share> {
        std::iter::from_fn(|| shares.take(client(number), 1)).collect()
    }

    #[test]
    fn nobody_gets_all_and_newcomers_get_some() {
        let shares = Shares::new(1024, 64, 1);
        let mut held = vec![greedy(&shares, 0)];
        assert_eq!(held[0].len(), 64);
        for number in 1..70 {
            held.push(greedy(&shares, number));
            assert!(held[number as usize].len() <= held[number as usize - 1].len());
        }
        let free = shares.free();
        assert!((1..30).contains(&free), "{free}");
        assert!(shares.take(client(0), 1).is_none());
        let last: Vec<_> = (100..).map_while(|number| shares.take(client(number), 1)).collect();
        assert_eq!((last.len(), shares.free()), (free, 0), "as long as there are any, one each");
        // What comes free goes to whoever has none, not to those that hold many.
        held.pop();
        assert!(shares.free() > 0 && shares.take(client(1), 1).is_none() && shares.take(client(500), 1).is_some());
        drop((held, last));
        assert_eq!((shares.free(), shares.lock().clients.len()), (1024, 0), "nothing is left behind");
    }

    #[test]
    fn a_limit_of_all_is_none() {
        let shares = Shares::new(10, 10, 1);
        assert_eq!(greedy(&shares, 0).len(), 10);
        let half = Shares::new(10, 5, 1);
        assert_eq!(greedy(&half, 0).len(), 5);
        assert!(Shares::new(10, 0, 0).take(client(0), usize::MAX).is_none());
    }

    #[test]
    fn a_site_is_one_client() {
        let shares = Shares::new(16, 2, 0);
        let take = |address: &str| shares.take(address.parse().unwrap(), 1);
        let held = [take("2001:db8:0:1::1"), take("2001:db8:0:2::1")];
        assert!(held.iter().all(Option::is_some) && take("2001:db8:0:3::1").is_none());
        assert!(take("2001:db8:1::1").is_some());
    }

    #[tokio::test]
    async fn who_waits_gets_what_is_given_back() {
        let shares = Shares::new(100, 50, 0);
        let held = shares.take(client(0), 40).unwrap();
        assert!(shares.wait(client(0), 20, Duration::ZERO).await.is_none());
        let waiting = shares.wait(client(0), 20, SOON);
        let (got, ()) = tokio::join!(waiting, async { drop(held) });
        assert_eq!((got.as_ref().map(Share::units), shares.free()), (Some(20), 80));
        drop(got);
        // The first that waited too long left no trace.
        assert!(shares.lock().clients.is_empty());
    }

    #[tokio::test]
    async fn few_of_one_client_wait() {
        let shares = Shares::new(100, 50, 0);
        let _held = shares.take(client(0), 50).unwrap();
        let waiting: Vec<_> = (0..WAITING).map(|_| Place::take(&shares, client(0)).unwrap()).collect();
        assert!(shares.wait(client(0), 10, SOON).await.is_none(), "at once");
        drop(waiting);
        assert_eq!(shares.lock().clients[&client(0)].waiting, 0);
    }

    #[tokio::test]
    async fn a_share_grows() {
        let shares = Shares::new(100, 50, 0);
        let mut share = shares.wait(client(0), 10, SOON).await.unwrap();
        assert!(share.grow(20, SOON).await && !share.grow(30, Duration::ZERO).await);
        assert_eq!((share.units(), shares.free()), (30, 70));
    }
}
