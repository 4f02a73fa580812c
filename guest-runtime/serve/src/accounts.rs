// SPDX-License-Identifier: Apache-2.0
//! Tenants with API keys: who asks, what they may still ask, and what the engine keeps for them.
//!
//! Nothing here holds an API key or an id: a tenant is the number of its place in the document, which leaves this process
//! towards nobody. Rates are counted by a clock that never steps back.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, header};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use types::{ModelId, Sha256Digest, Tenants, tenants::TenantsError};
use zeroize::Zeroizing;

use crate::{
    buckets::{Bucket, in_words},
    engine::{Engine, Lease},
    error::ApiError,
    shares::Holder,
};

/// The document of a model's tenants, as it came. Wiped when dropped, and never printed.
#[derive(Clone)]
pub struct TenantsDocument(Zeroizing<Vec<u8>>);

impl TenantsDocument {
    /// Bytes that nobody has looked at.
    #[must_use]
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for TenantsDocument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TenantsDocument")
    }
}

/// All tenants.
#[derive(Debug)]
pub(crate) struct Accounts {
    /// SHA-256 of each API key, and the number of its tenant from 1.
    keys: Vec<(Sha256Digest, u32)>,
    accounts: Vec<Arc<Account>>,
}

/// A tenant.
#[derive(Debug)]
pub(crate) struct Account {
    number: u32,
    max_tokens: Option<u32>,
    at_once: Option<u32>,
    started: Instant,
    state: Mutex<State>,
    lease: Mutex<Option<Kept>>,
}

#[derive(Debug)]
struct State {
    running: u32,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

/// What the engine keeps for a tenant, and when it was asked for last.
#[derive(Debug)]
struct Kept {
    lease: Arc<Lease>,
    used: Instant,
}

/// Which limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    AtOnce,
    Requests,
    Tokens,
}

impl Accounts {
    /// Reads the document of a model.
    ///
    /// # Errors
    /// [`TenantsError`].
    pub(crate) fn read(document: &TenantsDocument, model: &ModelId) -> Result<Self, TenantsError> {
        let Tenants { tenants, .. } = Tenants::read(&document.0, model)?;
        let (mut keys, mut accounts, started) = (Vec::new(), Vec::new(), Instant::now());
        for (number, tenant) in (1..).zip(tenants) {
            keys.extend(tenant.keys.into_iter().map(|key| (key, number)));
            accounts.push(Arc::new(Account {
                number,
                max_tokens: tenant.max_tokens,
                at_once: tenant.requests_at_once,
                started,
                state: Mutex::new(State {
                    running: 0,
                    requests: tenant.requests_per_minute.map(Bucket::full),
                    tokens: tenant.tokens_per_minute.map(Bucket::full),
                }),
                lease: Mutex::new(None),
            }));
        }
        Ok(Self { keys, accounts })
    }

    /// Whose key the head of a request names. It costs one hash; the time of the search says nothing of the keys.
    ///
    /// # Errors
    /// No key, an unknown one, or more than one.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Result<&Arc<Account>, ApiError> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return Err(ApiError::invalid_api_key()) };
        let key = bearer(value.as_bytes()).ok_or_else(ApiError::invalid_api_key)?;
        let digest = Sha256Digest::of(key);
        let number = self.keys.iter().fold(0_u32, |found, (known, number)| {
            u32::conditional_select(&found, number, known.as_bytes().ct_eq(digest.as_bytes()))
        });
        let account = usize::try_from(number).ok().and_then(|number| self.accounts.get(number.checked_sub(1)?));
        account.ok_or_else(ApiError::invalid_api_key)
    }

    /// Has the engine forget what it keeps for tenants that asked nothing for so long.
    pub(crate) fn forget_idle(&self, idle: Duration) {
        self.accounts.iter().for_each(|account| account.forget_idle(idle));
    }
}

/// What stands behind the scheme `Bearer`, in any spelling of it (RFC 9110 section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(BEARER.len())?;
    let key = rest.strip_prefix(b" ")?.trim_ascii();
    (scheme.eq_ignore_ascii_case(BEARER) && !key.is_empty()).then_some(key)
}

impl Account {
    /// The tenant's place, from 1.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Largest `max_tokens`.
    pub(crate) fn max_tokens(&self) -> Option<u32> {
        self.max_tokens
    }

    /// Counts a request.
    ///
    /// # Errors
    /// Too many run, or too many came.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Charge, ApiError> {
        let now = self.now();
        let mut state = self.lock();
        if self.at_once.is_some_and(|most| state.running >= most) {
            return Err(refusal(Limit::AtOnce, 0));
        }
        if let Some(requests) = &mut state.requests {
            requests.take(1, now).map_err(|wait| refusal(Limit::Requests, wait))?;
        }
        state.running = state.running.saturating_add(1);
        drop(state);
        Ok(Charge {
            account: Arc::clone(self),
            reserved: 0,
            answers: 0,
            prompt: None,
            generated: 0,
            done: None,
            is_hidden: false,
        })
    }

    /// What the engine keeps for this tenant, over all of its connections.
    ///
    /// # Errors
    /// No randomness.
    pub(crate) fn lease(&self, engine: &Engine) -> Result<Arc<Lease>, ApiError> {
        let mut kept = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = match kept.take() {
            Some(Kept { lease, .. }) => lease,
            None => {
                let mut tenant = [0; 32];
                getrandom::fill(&mut tenant).map_err(|_| ApiError::internal())?;
                engine.tenant(tenant, Holder::Tenant(self.number))
            }
        };
        *kept = Some(Kept { lease: Arc::clone(&lease), used: Instant::now() });
        Ok(lease)
    }

    fn forget_idle(&self, idle: Duration) {
        let mut kept = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        // Requests hold their own; new ones come by this lock.
        let is_idle =
            kept.as_ref().is_some_and(|kept| Arc::strong_count(&kept.lease) == 1 && kept.used.elapsed() >= idle);
        if is_idle {
            *kept = None;
        }
    }

    /// What an answer says of the limits, as OpenAI's does.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        let now = self.now();
        let mut state = self.lock();
        let State { requests, tokens, .. } = &mut *state;
        for (bucket, [limit, remaining, reset]) in [(requests, REQUESTS), (tokens, TOKENS)] {
            let Some(bucket) = bucket else { continue };
            headers.insert(limit, HeaderValue::from(bucket.per_minute()));
            headers.insert(remaining, HeaderValue::from(bucket.remaining(now)));
            if let Ok(value) = HeaderValue::from_str(&in_words(bucket.until_full(now))) {
                headers.insert(reset, value);
            }
        }
    }

    /// Milliseconds since the tenants were read.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request may cost its tenant. When it is dropped, it has cost what is known of it; the rest is given back.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Arc<Account>,
    /// Tokens that are taken for it.
    reserved: u64,
    /// Of its answers, at most.
    answers: u64,
    /// Of its prompt, where the engine has counted them.
    prompt: Option<u32>,
    /// Of its answers so far, as far as pieces were seen.
    generated: u64,
    /// Of all, where it has ended.
    done: Option<u64>,
    /// Whether its answers may have tokens of which no piece is seen.
    is_hidden: bool,
}

impl Charge {
    /// The tenant.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// Takes as many tokens as the request will cost at most. The prompt's are an estimate until the engine has counted
    /// them. What is more than a minute's allowance takes the whole of it.
    ///
    /// # Errors
    /// They are not there now.
    pub(crate) fn reserve(&mut self, prompt: u64, answers: u64) -> Result<(), ApiError> {
        self.answers = answers;
        let now = self.account.now();
        let mut state = self.account.lock();
        let Some(tokens) = &mut state.tokens else { return Ok(()) };
        let cost = prompt.saturating_add(answers).min(tokens.per_minute().into());
        tokens.take(cost, now).map_err(|wait| refusal(Limit::Tokens, wait))?;
        self.reserved = cost;
        Ok(())
    }

    /// The engine has counted the prompt.
    pub(crate) fn started(&mut self, prompt: u32) {
        self.prompt = Some(prompt);
        let now = self.account.now();
        let mut state = self.account.lock();
        let Some(tokens) = &mut state.tokens else { return };
        let cost = u64::from(prompt).saturating_add(self.answers).min(tokens.per_minute().into());
        tokens.settle(self.reserved, cost, now);
        self.reserved = cost;
    }

    /// The client may have made tokens likely that have no text: none of their pieces are seen, so a request that is cut off
    /// costs all that was taken for it.
    pub(crate) fn hide(&mut self) {
        self.is_hidden = true;
    }

    /// So many tokens more of its answers were seen.
    pub(crate) fn said(&mut self, tokens: usize) {
        self.generated = self.generated.saturating_add(u64::try_from(tokens).unwrap_or(u64::MAX));
    }

    /// It has ended, and has cost so much.
    pub(crate) fn ended(&mut self, tokens: u64) {
        self.done = Some(tokens);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let seen = self.prompt.map_or(0, |prompt| u64::from(prompt).saturating_add(self.generated));
        let seen = if self.is_hidden && self.prompt.is_some() { seen.max(self.reserved) } else { seen };
        let cost = self.done.unwrap_or(seen);
        let now = self.account.now();
        let mut state = self.account.lock();
        state.running = state.running.saturating_sub(1);
        if let Some(tokens) = &mut state.tokens {
            tokens.settle(self.reserved, cost, now);
        }
    }
}

fn refusal(limit: Limit, milliseconds: u64) -> ApiError {
    let name = match limit {
        Limit::AtOnce => "requests at once",
        Limit::Requests => "requests per minute",
        Limit::Tokens => "tokens per minute",
    };
    ApiError::rate_limit_exceeded(name, milliseconds.div_ceil(1000).max(1))
}

const BEARER: &[u8] = b"Bearer";
const REQUESTS: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const TOKENS: [&str; 3] = ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

#[cfg(test)]
mod tests {
    use types::{Blake3Digest, Document as _, tenants::Tenant};

    use super::*;

    fn model() -> ModelId {
        ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap()
    }

    fn accounts(change: fn(&mut Tenant)) -> Accounts {
        let tenant = |id: &str| {
            let mut keys = vec![Sha256Digest::of(id.as_bytes()), Sha256Digest::of(format!("next {id}").as_bytes())];
            keys.sort_unstable();
            let mut tenant = Tenant {
                id: id.to_owned(),
                keys,
                max_tokens: None,
                requests_at_once: None,
                requests_per_minute: None,
                tokens_per_minute: None,
            };
            change(&mut tenant);
            tenant
        };
        let tenants = vec![tenant("a"), tenant("b")];
        let document = Tenants { schema: Tenants::SCHEMA.to_owned(), model: model(), tenants };
        let bytes = Zeroizing::new(document.to_canonical().unwrap());
        Accounts::read(&TenantsDocument::new(bytes), &model()).unwrap()
    }

    fn account(change: fn(&mut Tenant)) -> Arc<Account> {
        Arc::clone(accounts(change).accounts.first().unwrap())
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| {
            headers.append(header::AUTHORIZATION, value.parse().unwrap());
        });
        headers
    }

    #[test]
    fn each_key_is_one_tenant_s() {
        let accounts = accounts(|_| {});
        let number = |values: &[&str]| accounts.of(&headers(values)).map(|account| account.number()).ok();
        assert_eq!(number(&["Bearer a"]), Some(1));
        assert_eq!(number(&["bearer next a"]), Some(1));
        assert_eq!(number(&["BEARER  b "]), Some(2));
        for bad in [
            &[][..],
            &["Bearer c"],
            &["Bearer A"],
            &["Bearer "],
            &["Bearer"],
            &["a"],
            &["Basic a"],
            &["Bearera"],
            &["Bearer a", "Bearer a"],
            &["Bearer a", "Bearer b"],
        ] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
        let refused = accounts.of(&headers(&["Bearer secret"])).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (401, "invalid_api_key"));
        assert!(!refused.message.contains("secret"));
    }

    #[test]
    fn a_document_of_another_model_is_refused() {
        let document = Tenants { schema: Tenants::SCHEMA.to_owned(), model: model(), tenants: vec![] };
        let document = TenantsDocument::new(Zeroizing::new(document.to_canonical().unwrap()));
        let other = ModelId::new("m", "1", Blake3Digest::of(b"other")).unwrap();
        assert!(Accounts::read(&document, &other).is_err());
        let nobody = Accounts::read(&document, &model()).unwrap();
        assert!(nobody.of(&headers(&["Bearer a"])).is_err(), "without tenants nobody may ask");
    }

    #[test]
    fn as_many_requests_run_as_may() {
        let account = account(|tenant| tenant.requests_at_once = Some(2));
        let (first, _second) = (account.enter().unwrap(), account.enter().unwrap());
        let refused = account.enter().unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code, refused.retry), (429, "rate_limit_exceeded", Some(1)));
        drop(first);
        assert!(account.enter().is_ok());
    }

    fn remaining(account: &Account) -> u64 {
        account.lock().tokens.as_mut().unwrap().remaining(0)
    }

    /// One token comes back in six seconds: less than any test takes.
    #[test]
    fn what_was_reserved_and_not_used_is_given_back() {
        let account = account(|tenant| tenant.tokens_per_minute = Some(10));
        let charged = |prompt, answers| {
            let mut charge = account.enter().unwrap();
            charge.reserve(prompt, answers).map(|()| charge)
        };
        // It ended.
        let mut charge = charged(2, 4).unwrap();
        assert_eq!(remaining(&account), 4);
        charge.started(1);
        assert_eq!(remaining(&account), 5);
        charge.ended(3);
        drop(charge);
        assert_eq!(remaining(&account), 7);
        // It was cancelled on the way.
        let mut charge = charged(2, 4).unwrap();
        charge.started(1);
        charge.said(1);
        drop(charge);
        assert_eq!(remaining(&account), 5);
        // Nobody took it.
        drop(charged(2, 3).unwrap());
        assert_eq!(remaining(&account), 5);
        // Two that do not fit beside each other.
        let first = charged(1, 3).unwrap();
        let refused = charged(1, 2).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (429, "rate_limit_exceeded"));
        assert!(refused.retry.is_some_and(|seconds| (7..=12).contains(&seconds)), "{refused:?}");
        drop(first);
        assert!(charged(1, 2).is_ok());
    }

    #[test]
    fn more_than_a_minute_s_allowance_takes_all_of_it_and_leaves_a_debt() {
        let account = account(|tenant| tenant.tokens_per_minute = Some(10));
        let mut charge = account.enter().unwrap();
        charge.reserve(1, 50).unwrap();
        assert_eq!(remaining(&account), 0);
        charge.started(1);
        charge.ended(30);
        drop(charge);
        let refused = account.enter().unwrap().reserve(1, 0).unwrap_err();
        assert!(refused.retry.is_some_and(|seconds| (121..=126).contains(&seconds)), "{refused:?}");
    }

    #[test]
    fn tokens_without_a_text_are_not_computed_for_nothing() {
        let left = |hides: bool, starts: bool| {
            let account = account(|tenant| tenant.tokens_per_minute = Some(1000));
            let mut charge = account.enter().unwrap();
            charge.reserve(1, 400).unwrap();
            if hides {
                charge.hide();
            }
            if starts {
                charge.started(1);
            }
            // Its client hangs up.
            drop(charge);
            remaining(&account)
        };
        assert!((599..=605).contains(&left(true, true)));
        assert!(left(false, true) >= 999);
        // Nothing was computed.
        assert_eq!(left(true, false), 1000);
    }

    #[test]
    fn an_answer_says_what_is_left() {
        let account = account(|tenant| {
            (tenant.requests_per_minute, tenant.tokens_per_minute) = (Some(10), Some(20));
        });
        let mut charge = account.enter().unwrap();
        charge.reserve(0, 10).unwrap();
        let mut headers = HeaderMap::new();
        account.tell(&mut headers);
        let value = |name: &str| headers.get(name).unwrap().to_str().unwrap();
        assert_eq!((value("x-ratelimit-limit-requests"), value("x-ratelimit-remaining-requests")), ("10", "9"));
        assert_eq!((value("x-ratelimit-limit-tokens"), value("x-ratelimit-remaining-tokens")), ("20", "10"));
        assert!(["30s", "29s", "28s"].contains(&value("x-ratelimit-reset-tokens")), "{headers:?}");
        assert!(["6s", "5s", "4s"].contains(&value("x-ratelimit-reset-requests")), "{headers:?}");
        let mut none = HeaderMap::new();
        self::account(|_| {}).tell(&mut none);
        assert!(none.is_empty(), "what is not limited is not told");
    }
}
