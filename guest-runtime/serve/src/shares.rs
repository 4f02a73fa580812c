// SPDX-License-Identifier: Apache-2.0
//! Places that addresses or tenants share, so that none can take all of them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// Who takes places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// Whoever has an address; of IPv6 its network of 64 bits.
    Address(IpAddr),
    /// A tenant with an API key, by its place in the document.
    Tenant(u32),
}

impl From<IpAddr> for Holder {
    fn from(address: IpAddr) -> Self {
        Self::Address(network(address))
    }
}

/// A number of places. A holder has at most three times as many as it leaves free (Choudhury and Hahne's dynamic
/// thresholds, 1998): alone it gets three quarters of them. One that has none takes what it asks for if that is free, so
/// that a new one finds places behind any that were there before, until what these leave (each a quarter of what it
/// found) is less than it asks for.
///
/// It establishes nothing where addresses are not those of clients, as behind a proxy or address translation.
#[derive(Debug)]
pub(crate) struct Shares {
    total: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_holder: HashMap<Holder, usize>,
    closed: bool,
}

/// Places, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    shares: Arc<Shares>,
    holder: Holder,
    weight: usize,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// Too many are taken, or too many by this holder.
    Busy,
    /// There will be none any more.
    Closed,
}

impl Shares {
    pub(crate) fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { total, taken: Mutex::default() })
    }

    /// Takes as many places for a holder as `weight` says, or none.
    pub(crate) fn take(self: &Arc<Self>, holder: impl Into<Holder>, weight: usize) -> Result<Place, NoPlace> {
        let holder = holder.into();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.closed {
            return Err(NoPlace::Closed);
        }
        let own = taken.by_holder.get(&holder).copied().unwrap_or(0);
        let free = self.total.saturating_sub(taken.all).checked_sub(weight).ok_or(NoPlace::Busy)?;
        let after = own.saturating_add(weight);
        if own > 0 && after > free.saturating_mul(FREE_FACTOR) {
            return Err(NoPlace::Busy);
        }
        taken.all = taken.all.saturating_add(weight);
        taken.by_holder.insert(holder, after);
        Ok(Place { shares: Arc::clone(self), holder, weight })
    }

    /// Gives no place any more.
    pub(crate) fn close(&self) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(self.weight);
        if let Some(own) = taken.by_holder.get_mut(&self.holder) {
            *own = own.saturating_sub(self.weight);
            if *own == 0 {
                taken.by_holder.remove(&self.holder);
            }
        }
    }
}

/// Who has one address of IPv6 has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

const FREE_FACTOR: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn take(shares: &Arc<Shares>, address: &str, weight: usize) -> Result<Place, NoPlace> {
        shares.take(address.parse::<IpAddr>().unwrap(), weight)
    }

    fn fill_by(shares: &Arc<Shares>, address: &str, weight: usize) -> Vec<Place> {
        std::iter::from_fn(|| take(shares, address, weight).ok()).collect()
    }

    fn fill(shares: &Arc<Shares>, address: &str) -> Vec<Place> {
        fill_by(shares, address, 1)
    }

    #[test]
    fn no_address_takes_all_and_each_new_one_finds_a_place() {
        let shares = Shares::new(32);
        let first = fill(&shares, "192.0.2.1");
        assert_eq!(first.len(), 24);
        let second = fill(&shares, "192.0.2.2");
        assert!((4..8).contains(&second.len()), "{}", second.len());
        assert!(!fill(&shares, "192.0.2.3").is_empty());
        drop((first, second));
        let places = fill(&shares, "2001:db8::1");
        assert_eq!((places.len(), fill(&shares, "2001:db8::2").len()), (24, 0), "a network is one");
        assert_eq!(fill(&shares, "2001:db8:0:1::1").len(), 6);
        drop(places);
        assert_eq!(shares.taken.lock().unwrap().all, 0);
        assert!(shares.taken.lock().unwrap().by_holder.is_empty());
        assert_eq!(take(&Shares::new(1), "192.0.2.1", 1).err(), None);
        shares.close();
        assert_eq!(take(&shares, "192.0.2.1", 1).err(), Some(NoPlace::Closed));
    }

    #[test]
    fn tenants_share_as_addresses_do() {
        let shares = Shares::new(32);
        let first: Vec<_> = std::iter::from_fn(|| shares.take(Holder::Tenant(1), 1).ok()).collect();
        let second: Vec<_> = std::iter::from_fn(|| shares.take(Holder::Tenant(2), 1).ok()).collect();
        assert_eq!((first.len(), second.len()), (24, 6));
    }

    /// Requests for eight answers, in the places of the default.
    #[test]
    fn places_are_shared_by_what_they_cost() {
        let total = crate::Limits::default().generations;
        let shares = Shares::new(total);
        let first = fill_by(&shares, "192.0.2.1", 8);
        assert_eq!(first.len() * 8, total / 4 * 3);
        assert_eq!(take(&shares, "192.0.2.1", 1).err(), Some(NoPlace::Busy));
        let second = fill_by(&shares, "192.0.2.2", 8);
        assert!(!second.is_empty());
        let third = take(&shares, "192.0.2.3", 8).unwrap();
        assert_eq!(take(&shares, "192.0.2.4", total).err(), Some(NoPlace::Busy));
        let all = 8 * (first.len() + second.len() + 1);
        assert_eq!(shares.taken.lock().unwrap().all, all);
        drop((first, second, third));
        assert_eq!(shares.taken.lock().unwrap().all, 0);
        assert!(shares.taken.lock().unwrap().by_holder.is_empty());
    }
}
