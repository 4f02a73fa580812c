// SPDX-License-Identifier: Apache-2.0
//! Who may ask how often. Pure: the time is an argument.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::StatusCode;
use types::{Blake3Digest, Refusal};

use crate::{reply::Refused, service::CHALLENGE_SECONDS};

/// Limits of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second of one client address (of a /64 for IPv6), on average; ten times as many at once.
    pub client_rate: u32,
    /// Keys of one model a second, on average; ten times as many at once.
    pub model_rate: u32,
    /// Challenges that are open: not expired, and no key was released for them. From a quarter of it on challenges ask
    /// for work.
    pub open_challenges: u32,
    /// Connections at the same time; more wait in the kernel's queue.
    pub connections: u32,
    /// Connections of one client at the same time (all addresses of a /48 for IPv6), while there are enough for others;
    /// its part of the memory for bodies and answers goes by it, too. As many as there are is no limit.
    pub client_connections: u32,
    /// How long a handshake may take, and from there the first request to begin; less where connections are scarce.
    pub handshake: Duration,
    /// How long nothing may come of a body.
    pub stall: Duration,
    /// How long all of a body may take. Shorter than `request`: who is slow shall be told so.
    pub body: Duration,
    /// How long a request may take, its body included.
    pub request: Duration,
    /// How long a client may take to receive an answer.
    pub sending: Duration,
}

/// The limits, and how far they are used.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    clients: Mutex<Buckets<IpAddr>>,
    models: Mutex<Buckets<Blake3Digest>>,
    open: Mutex<OpenChallenges>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            client_rate: 100,
            model_rate: 1000,
            open_challenges: 16_384,
            connections: 1024,
            client_connections: 64,
            handshake: Duration::from_secs(30),
            stall: Duration::from_secs(10),
            body: Duration::from_secs(20),
            request: Duration::from_secs(30),
            sending: Duration::from_secs(60),
        }
    }
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            clients: Mutex::new(Buckets::new(limits.client_rate)),
            models: Mutex::new(Buckets::new(limits.model_rate)),
            open: Mutex::new(OpenChallenges::default()),
        }
    }

    /// The limits.
    pub(crate) const fn limits(&self) -> Limits {
        self.limits
    }

    /// Counts a request of a client. `now` is in milliseconds since any fixed moment.
    pub(crate) fn client(&self, address: IpAddr, now: u64) -> Result<(), Refused> {
        let rate = self.limits.client_rate;
        let taken = lock(&self.clients).take(network(address), now);
        taken.map_err(|()| over("client", &format!("more than {rate} requests a second from this address")))
    }

    /// Counts a key of a model.
    pub(crate) fn model(&self, identity: &Blake3Digest, now: u64) -> Result<(), Refused> {
        let rate = self.limits.model_rate;
        let taken = lock(&self.models).take(*identity, now);
        taken.map_err(|()| over("model", &format!("more than {rate} keys of this model a second")))
    }

    /// Counts a challenge for the client at `address` that ends at `expires`; times are seconds. Gives the bits of work
    /// that its redemption shall cost.
    pub(crate) fn challenge(&self, address: IpAddr, expires: u64, now: u64) -> Result<u8, Refused> {
        let client = site(address);
        let mut open = lock(&self.open);
        let bits = price(self.limits.open_challenges, open.count(now), open.of(&client))?;
        open.add(expires, client);
        Ok(bits)
    }

    /// A key was released for a challenge. One that was refused stays counted to its end: what failed costs, too.
    pub(crate) fn answered(&self, address: IpAddr, expires: u64) {
        lock(&self.open).remove(expires, &site(address));
    }

    /// Challenges that have not expired, and for which no key was released.
    pub(crate) fn open_challenges(&self, now: u64) -> u32 {
        lock(&self.open).count(now)
    }
}

/// Bits of work that one more challenge costs where `total` are open, `own` of them of the client that asks.
///
/// A challenge takes no memory of its own, so that a number of them harms nobody: what their redemption costs the
/// service is what must not come for nothing. The more are open, the more work; a client with many pays first. Where
/// they are scarce nobody may have more than a quarter, and a newcomer gets one even beyond the limit.
fn price(limit: u32, total: u32, own: u32) -> Result<u8, Refused> {
    let exhausted = |status, field, detail: String| {
        let fix = "finish the releases that were begun; try again in a minute";
        Err(Refused::one(status, Refusal::new("challenges_exhausted", field, detail, fix)))
    };
    let newcomer = own < NEWCOMER.min(limit / 8).max(1);
    if total >= limit.saturating_mul(4) || (total >= limit && !newcomer) {
        return exhausted(StatusCode::SERVICE_UNAVAILABLE, "service", format!("{total} challenges are open"));
    }
    if total >= limit / 2 && own >= limit / 4 && !newcomer {
        let detail = format!("{own} challenges of this address are open, and few are left");
        return exhausted(StatusCode::TOO_MANY_REQUESTS, "client", detail);
    }
    let for_all = match total {
        total if total < limit / 4 => 0,
        total if total < limit / 2 => 14,
        total if total < limit / 4 * 3 => 16,
        total if total < limit => 18,
        _ => MOST_WORK,
    };
    let for_own = match own {
        own if own < limit / 8 => 0,
        own if own < limit / 4 => 16,
        _ => 18,
    };
    Ok(for_all.max(for_own))
}

/// Nothing here is half done between two statements that can panic.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn over(field: &str, detail: &str) -> Refused {
    let reason = Refusal::new("rate_limited", field, detail, "ask less often; wait a second before the next request");
    Refused::one(StatusCode::TOO_MANY_REQUESTS, reason)
}

/// Whoever has one address of IPv6 has the /64.
fn network(address: IpAddr) -> IpAddr {
    prefix(address, 64)
}

/// Whose addresses these are, where what is counted is scarce: a customer has a /48 of IPv6, as a rule (RFC 6177).
pub(crate) fn site(address: IpAddr) -> IpAddr {
    prefix(address, 80)
}

/// An address without its last bits, if it is of IPv6.
fn prefix(address: IpAddr, last: u32) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => match six.to_ipv4_mapped() {
            Some(four) => IpAddr::V4(four),
            None => IpAddr::V6((six.to_bits() >> last << last).into()),
        },
    }
}

/// Token buckets by key. Those that find no place share one.
#[derive(Debug)]
struct Buckets<K> {
    /// Tokens a second, which is thousandths of a token a millisecond.
    rate: u64,
    buckets: HashMap<K, Bucket>,
    rest: Bucket,
    /// From when on full ones are looked for again.
    sweep: u64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Thousandths of tokens.
    level: u64,
    at: u64,
}

impl<K: Hash + Eq> Buckets<K> {
    fn new(rate: u32) -> Self {
        let rate = u64::from(rate);
        Self { rate, buckets: HashMap::new(), rest: Bucket::full(rate, 0), sweep: 0 }
    }

    fn take(&mut self, key: K, now: u64) -> Result<(), ()> {
        let rate = self.rate;
        if self.buckets.len() >= MAX_BUCKETS && now >= self.sweep && !self.buckets.contains_key(&key) {
            self.buckets.retain(|_, bucket| !bucket.is_full(rate, now));
            // Looking through all of them is dear: not for each stranger.
            self.sweep = now.saturating_add(1000);
        }
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&key) {
            return self.rest.take(rate, now);
        }
        self.buckets.entry(key).or_insert_with(|| Bucket::full(rate, now)).take(rate, now)
    }
}

impl Bucket {
    const fn full(rate: u64, now: u64) -> Self {
        Self { level: rate.saturating_mul(BURST), at: now }
    }

    fn fill(&mut self, rate: u64, now: u64) {
        let gained = now.saturating_sub(self.at).saturating_mul(rate);
        self.level = self.level.saturating_add(gained).min(rate.saturating_mul(BURST));
        self.at = now;
    }

    fn is_full(mut self, rate: u64, now: u64) -> bool {
        self.fill(rate, now);
        self.level >= rate.saturating_mul(BURST)
    }

    fn take(&mut self, rate: u64, now: u64) -> Result<(), ()> {
        self.fill(rate, now);
        self.level = self.level.checked_sub(TOKEN).ok_or(())?;
        Ok(())
    }
}

/// How many challenges end in each second, of all clients and of each.
#[derive(Debug, Default)]
struct OpenChallenges(HashMap<u64, Second>);

#[derive(Debug, Default)]
struct Second {
    total: u32,
    clients: HashMap<IpAddr, u32>,
}

impl OpenChallenges {
    fn count(&mut self, now: u64) -> u32 {
        // A clock that stepped back leaves ends that no challenge can have.
        let window = now.saturating_add(1)..=now.saturating_add(CHALLENGE_SECONDS);
        self.0.retain(|expires, _| window.contains(expires));
        self.0.values().fold(0, |sum, second| sum.saturating_add(second.total))
    }

    /// Those of one client, once what ended is gone.
    fn of(&self, client: &IpAddr) -> u32 {
        let own = self.0.values().filter_map(|second| second.clients.get(client));
        own.fold(0, |sum, count| sum.saturating_add(*count))
    }

    fn add(&mut self, expires: u64, client: IpAddr) {
        let second = self.0.entry(expires).or_default();
        second.total = second.total.saturating_add(1);
        let own = second.clients.entry(client).or_default();
        *own = own.saturating_add(1);
    }

    /// The client that redeems is, as a rule, the one that asked; where it is another, the sum is right all the same.
    fn remove(&mut self, expires: u64, client: &IpAddr) {
        let Some(second) = self.0.get_mut(&expires) else { return };
        second.total = second.total.saturating_sub(1);
        if let Some(own) = second.clients.get_mut(client) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                second.clients.remove(client);
            }
        }
    }
}

/// Most bits of work; clients do up to 22.
const MOST_WORK: u8 = 20;
/// Who has fewer open challenges is new.
const NEWCOMER: u32 = 16;
const TOKEN: u64 = 1000;
/// Ten seconds of the rate, in thousandths of tokens for each token a second.
const BURST: u64 = 10 * TOKEN;
const MAX_BUCKETS: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<(), Refused>) -> String {
        result.map_or_else(|refused| refused.codes().join(","), |()| String::new())
    }

    #[test]
    fn a_client_gets_its_rate_and_a_burst() {
        let admission = Admission::new(Limits { client_rate: 2, ..Limits::default() });
        let (one, two) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert!((0..20).all(|_| admission.client(one, 1000).is_ok()));
        let refused = admission.client(one, 1000).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.reasons[0].field.as_str()), (429, "client"));
        assert_eq!(code(admission.client(two, 1000)), "", "another client is not concerned");
        assert_eq!(code(admission.client(one, 1499)), "rate_limited");
        assert_eq!(code(admission.client(one, 1500)), "");
        assert_eq!(code(admission.client(one, 1500)), "rate_limited");
        assert_eq!(code(admission.client(one, 0)), "rate_limited", "a clock that steps back gives nothing");
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let admission = Admission::new(Limits { client_rate: 1, ..Limits::default() });
        let address = |text: &str| text.parse().unwrap();
        for last in 0..10 {
            assert_eq!(code(admission.client(address(&format!("2001:db8::{last}")), 0)), "");
        }
        assert_eq!(code(admission.client(address("2001:db8::ffff:1"), 0)), "rate_limited");
        assert_eq!(code(admission.client(address("2001:db8:0:1::1"), 0)), "");
        assert_eq!(network(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }

    /// Many addresses: memory is bounded, and those without a place share one bucket.
    #[test]
    fn the_number_of_buckets_is_bounded() {
        let mut buckets = Buckets::new(1);
        let all: usize = (0..MAX_BUCKETS as u32 + 1000).filter(|key| buckets.take(*key, 0).is_ok()).count();
        assert_eq!((buckets.buckets.len(), all), (MAX_BUCKETS, MAX_BUCKETS + 10));
        // Later, those who came once are forgotten.
        assert!(buckets.take(u32::MAX, 10_000).is_ok());
        assert_eq!(buckets.buckets.len(), 1);
    }

    fn bits(admission: &Admission, client: u32, now: u64) -> Result<u8, (u16, String, String)> {
        let address = IpAddr::V4(client.into());
        admission.challenge(address, now + CHALLENGE_SECONDS, now).map_err(|refused| {
            let reason = &refused.reasons[0];
            (refused.status.as_u16(), reason.code.clone(), reason.field.clone())
        })
    }

    fn exhausted<T>(status: u16, field: &str) -> Result<T, (u16, String, String)> {
        Err((status, "challenges_exhausted".to_owned(), field.to_owned()))
    }

    #[test]
    fn open_challenges_end_by_a_key_and_by_time() {
        let admission = Admission::new(Limits { open_challenges: 3, ..Limits::default() });
        let now = 1_800_000_000;
        for second in 0..3 {
            assert!(bits(&admission, second, now + u64::from(second)).is_ok());
        }
        assert_eq!(bits(&admission, 1, now + 2), exhausted(503, "service"));
        admission.answered(IpAddr::V4(1.into()), now + 61);
        assert!(bits(&admission, 1, now + 2).is_ok());
        assert_eq!(bits(&admission, 1, now + 2), exhausted(503, "service"));
        assert_eq!(admission.open_challenges(now + 60), 2, "one ended");
        assert_eq!(admission.open_challenges(now + 62), 0);
        // The clock was ahead and steps back: what was counted then is gone.
        bits(&admission, 1, now + 1000).unwrap();
        assert_eq!(admission.open_challenges(now), 0);
    }

    /// Few cost nothing; the more are open, the more work; a client with many pays before others do.
    #[test]
    fn work_grows_with_what_is_open() {
        let price = |total, own| price(1024, total, own).map_err(|refused| refused.status.as_u16());
        for (total, own, expected) in [
            (0, 0, Ok(0)),
            (255, 127, Ok(0)),
            (255, 128, Ok(16)),
            (256, 0, Ok(14)),
            (256, 128, Ok(16)),
            (511, 511, Ok(18)),
            (512, 255, Ok(16)),
            (512, 256, Err(429)),
            (767, 0, Ok(16)),
            (768, 255, Ok(18)),
            (1023, 0, Ok(18)),
            (1024, 15, Ok(20)),
            (1024, 16, Err(503)),
            (4095, 0, Ok(20)),
            (4096, 0, Err(503)),
        ] {
            assert_eq!(price(total, own), expected, "{total} open, {own} own");
        }
    }

    /// Three addresses that ask as often as they may: they never hold so many that another gets none.
    #[test]
    fn a_flood_leaves_room_for_others() {
        let limit = 1024;
        let admission = Admission::new(Limits { open_challenges: limit, ..Limits::default() });
        let now = 1_800_000_000;
        let mut given = 0;
        for turn in 0..5000 {
            given += u32::from(bits(&admission, turn % 3, now).is_ok());
        }
        assert!(given <= limit / 4 * 3 && admission.open_challenges(now) == given, "{given}");
        assert_eq!(bits(&admission, 0, now), exhausted(429, "client"));
        assert_eq!(bits(&admission, 100, now), Ok(18), "another pays a little, and gets its challenge");
        // Many addresses: beyond the limit newcomers still get some, for more work, up to four times the limit.
        for client in 1000..5000 {
            assert!(bits(&admission, client, now).is_ok() || admission.open_challenges(now) == 4 * limit);
        }
        assert_eq!(admission.open_challenges(now), 4 * limit);
        assert_eq!(bits(&admission, 9999, now), exhausted(503, "service"));
        assert_eq!(bits(&admission, 9999, now + CHALLENGE_SECONDS), Ok(0), "a minute later all are gone");
    }

    #[test]
    fn models_have_a_limit_of_their_own() {
        let admission = Admission::new(Limits { model_rate: 1, ..Limits::default() });
        let (one, two) = (Blake3Digest::of(b"1"), Blake3Digest::of(b"2"));
        assert!((0..10).all(|_| admission.model(&one, 0).is_ok()));
        assert_eq!(admission.model(&one, 0).unwrap_err().reasons[0].field, "model");
        assert_eq!(code(admission.model(&two, 0)), "");
    }
}
