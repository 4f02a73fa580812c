// SPDX-License-Identifier: Apache-2.0
//! Who has how many of a front's places.

use std::collections::HashMap;
use std::net::IpAddr;

/// A peer, as far as its address says: with IPv6 a whole /64, which one host can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Peer([u8; 16]);

impl Peer {
    pub(super) fn of(address: IpAddr) -> Self {
        let mut bytes = match address.to_canonical() {
            IpAddr::V4(address) => return Self(address.to_ipv6_mapped().octets()),
            IpAddr::V6(address) => address.octets(),
        };
        bytes.iter_mut().skip(PREFIX_BYTES).for_each(|byte| *byte = 0);
        Self(bytes)
    }
}

/// Most open connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    pub(super) all: usize,
    pub(super) of_one: usize,
}

impl Default for Most {
    fn default() -> Self {
        Self { all: 8192, of_one: 1024 }
    }
}

/// The places that are taken.
#[derive(Debug, Default)]
pub(super) struct Places {
    most: Most,
    all: usize,
    by_peer: HashMap<Peer, usize>,
}

impl Places {
    pub(super) fn new(most: Most) -> Self {
        Self { most, ..Self::default() }
    }

    /// Takes a place. False if there is none, or if this peer has enough.
    pub(super) fn take(&mut self, peer: Peer) -> bool {
        let has = self.by_peer.get(&peer).copied().unwrap_or(0);
        let free = self.all < self.most.all && has < self.most.of_one;
        if free {
            self.all = self.all.saturating_add(1);
            self.by_peer.insert(peer, has.saturating_add(1));
        }
        free
    }

    /// Gives a place back that was taken.
    pub(super) fn leave(&mut self, peer: Peer) {
        self.all = self.all.saturating_sub(1);
        let has = self.by_peer.get(&peer).copied().unwrap_or(0).saturating_sub(1);
        if has == 0 {
            self.by_peer.remove(&peer);
        } else {
            self.by_peer.insert(peer, has);
        }
    }
}

const PREFIX_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Peer {
        Peer::of(text.parse().unwrap())
    }

    #[test]
    fn one_peer_leaves_places_for_others() {
        let mut places = Places::new(Most { all: 5, of_one: 2 });
        let (one, two, three) = (peer("192.0.2.1"), peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!([one; 3].map(|peer| places.take(peer)), [true, true, false]);
        assert_eq!([two; 3].map(|peer| places.take(peer)), [true, true, false]);
        assert_eq!([three; 2].map(|peer| places.take(peer)), [true, false], "all are taken");
        places.leave(one);
        assert!(places.take(three) && !places.take(one));
        for peer in [one, two, two, three, three] {
            places.leave(peer);
        }
        assert!(places.all == 0 && places.by_peer.is_empty());
    }

    #[test]
    fn peers_are_told_apart_by_what_one_host_cannot_choose() {
        assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
        assert_eq!(peer("192.0.2.1"), peer("::ffff:192.0.2.1"));
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:0:0:2"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
    }
}
