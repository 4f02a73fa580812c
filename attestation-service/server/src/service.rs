// SPDX-License-Identifier: Apache-2.0
//! The service's decisions. Blocking: the listener calls it off the network's threads.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::Ordering},
    time::Instant,
};

use appraise::Policy;
use attestation_result::{KeySet, ResultKey};
use http::StatusCode;
use key_release::{
    Appraised, ChallengeAnswer, Checked, Grounds, KeyReleaseAnswer, KeyReleaseRequest, SealError, ServiceKeys, Token,
    UnwrapErr, Work,
};
use release::{TrustPolicy, VerifiedRelease, log::ProofVerifier};
use store::{Generation, KeyStoreError, ModelKey, RedeemError, RefusalEntry, ReplicaId, Store, WrapError};
use tdx_verify::{Collateral, KnownPlatforms, TrustAnchors, Uses};
use types::{CanonicalError, Document as _, Hex32, Refusal, Sha256Digest, evidence::AttestedTime};

use crate::{
    demand::{Compiled, Demand, DemandError},
    gpu_files::GpuFiles,
    grounds::{Cache, Standing},
    identity::Identity,
    limits::{Admission, Limits},
    metrics::Gauges,
    reply::Refused,
    tally::Tally,
    tokens::Tokens,
};

mod observe;
mod owner;
mod replica;
mod result;

pub use owner::OwnerAnswer;
pub(crate) use result::BUILD;
pub use result::Granted;

/// Seconds since 1970. The service's machine keeps it right; guests take it from here.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Milliseconds since any fixed moment, which never step back: rates are limited by them.
pub type Stopwatch = Arc<dyn Fn() -> u64 + Send + Sync>;

/// One attestation service.
pub struct Service {
    store: Store,
    identity: Identity,
    results: ResultKey,
    result_keys: KeySet,
    anchors: TrustAnchors,
    collateral: RwLock<Arc<KnownCollateral>>,
    known: KnownPlatforms,
    grounds: Cache,
    gpu: RwLock<Arc<GpuFiles>>,
    /// Verifies what the store says of its own log.
    audit: ProofVerifier,
    tokens: Tokens,
    clock: Clock,
    stopwatch: Stopwatch,
    admission: Admission,
    /// One command of an owner at a time, from the look at its sequence until it is carried out.
    commands: Mutex<()>,
    tally: Mutex<Tally>,
    gauges: Gauges,
    counters: Mutex<BTreeMap<String, u64>>,
}

/// Collateral for the platforms that may come.
#[derive(Debug, Default)]
pub struct KnownCollateral {
    /// What platforms are judged by.
    pub in_force: Vec<Collateral>,
    /// The next TCB evaluation, where one is published: platforms are told apart by it, and never judged.
    pub early: Vec<Collateral>,
}

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The service's key.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// No randomness.
    #[error("the system gave no randomness")]
    Random,
    /// The policy in the store.
    #[error("the policy in the store is refused: {0}")]
    Policy(#[from] DemandError),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::DatabaseError),
    /// The secret that replicas share.
    #[error(transparent)]
    Secret(#[from] KeyStoreError),
}

/// A refusal that goes to the audit log once it was answered.
#[derive(Debug)]
pub struct RefusalNote(Box<RefusalEntry>);

/// Gives a connection's exporter for a challenge, from the service's own side.
pub type Exporter = dyn Fn(&[u8; 32]) -> Result<[u8; 32], rustls::Error> + Send + Sync;

impl Service {
    /// Takes over an open store. All challenges of earlier runs are void from here.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn new(
        store: Store,
        anchors: TrustAnchors,
        collateral: Vec<Collateral>,
        clock: Clock,
    ) -> Result<Self, StartError> {
        let identity = Identity::load(&store)?;
        let audit = ProofVerifier::new(store.audit_key().clone());
        Demand::read(&policy_bytes(&store)?, &Compiled::new())?;
        let tokens = Tokens::new(&store)?;
        // Its challenges of earlier runs are void.
        if !store.is_shared() {
            store.forget_prunings()?;
        }
        let started = Instant::now();
        let collateral = RwLock::new(Arc::new(KnownCollateral { in_force: collateral, early: Vec::new() }));
        Ok(Self {
            store,
            results: identity.result_key(),
            result_keys: identity.result_keys(),
            identity,
            anchors,
            collateral,
            known: KnownPlatforms::default(),
            grounds: Cache::default(),
            gpu: RwLock::default(),
            audit,
            tokens,
            clock,
            stopwatch: Arc::new(move || u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)),
            admission: Admission::new(Limits::default()),
            commands: Mutex::default(),
            tally: Mutex::default(),
            gauges: Gauges::default(),
            counters: Mutex::default(),
        })
    }

    /// The same service with other limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { admission: Admission::new(limits), ..self }
    }

    /// Limits rates by another stopwatch than the system's.
    #[must_use]
    pub fn with_stopwatch(self, stopwatch: Stopwatch) -> Self {
        Self { stopwatch, ..self }
    }

    /// Judges evidence of GPUs by these files.
    #[must_use]
    pub fn with_gpu_files(self, gpu: GpuFiles) -> Self {
        Self { gpu: RwLock::new(Arc::new(gpu)), ..self }
    }

    /// Judges evidence of GPUs by other files, from the next request on.
    pub fn set_gpu_files(&self, gpu: GpuFiles) {
        *self.gpu.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(gpu);
    }

    /// Reads policies and releases of the store anew with the next request, whether a change of them was announced or not.
    pub fn forget_standing(&self) {
        self.grounds.forget();
    }

    /// The service's key.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Puts other collateral in force, from the next request on. What was known of platforms under the old one is
    /// not used under the new one, and forgotten.
    pub fn set_collateral(&self, collateral: KnownCollateral) {
        let collateral = Arc::new(collateral);
        *self.collateral.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&collateral);
        self.known.keep_only(&collateral.in_force);
    }

    /// How often quotes took which path of verification so far.
    #[must_use]
    pub fn verification_uses(&self) -> Uses {
        self.known.uses()
    }

    /// The limits.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.admission.limits()
    }

    /// Signs the time.
    #[must_use]
    pub fn time(&self, nonce: Hex32) -> AttestedTime {
        self.identity.sign_time(nonce, (self.clock)())
    }

    /// The keys of this service that owners need.
    #[must_use]
    pub fn keys(&self) -> ServiceKeys {
        self.identity.service_keys()
    }

    /// Counts a request of the client at `address`.
    ///
    /// # Errors
    /// It asks too often.
    pub fn admit(&self, address: IpAddr) -> Result<(), Refused> {
        self.admission.client(address, self.milliseconds())
    }

    /// Makes a challenge for the client at `address`. Nothing of it is stored: it is only counted.
    ///
    /// # Errors
    /// Without randomness, or when too many are open.
    pub fn challenge(&self, address: IpAddr) -> Result<ChallengeAnswer, Refused> {
        let nonce = self.tokens.nonce().map_err(|e| Refused::unable("randomness_unavailable", &e))?;
        let now = (self.clock)();
        let expires = now.saturating_add(CHALLENGE_SECONDS);
        let bits = self.admission.challenge(address, expires, now)?;
        if bits > 0 {
            self.gauges.work_asked.fetch_add(1, Ordering::Relaxed);
        }
        let token = self.tokens.own().mint_asking(expires, bits, nonce);
        Ok(ChallengeAnswer { expires, token, work: (bits > 0).then_some(Work { bits }) })
    }

    /// Looks at token and work of a request for a key, at the end of its canonical form, before the rest is read. What
    /// it finds is checked again with the whole.
    ///
    /// # Errors
    /// No challenge of this service, or not the work that it asked for.
    pub fn look_at(&self, body: &[u8]) -> Result<(), Refused> {
        let (token, work) = KeyReleaseRequest::end_of(body)
            .ok_or_else(|| Refused::malformed("body", "it is no canonical request with token and work at its end"))?;
        let (key, _) = self.tokens.of(&token);
        Checked::check(&token, work, &key, (self.clock)()).map_err(|e| Refused::because(vec![e]))
    }

    /// Keys that verify this service's attestation results.
    #[must_use]
    pub const fn result_keys(&self) -> &KeySet {
        &self.result_keys
    }

    /// Releases a key to the client at `address`, or says why not. `exporter` gives the connection's exporter for a
    /// challenge.
    ///
    /// # Errors
    /// The refusal, and what of it goes to the audit log afterwards.
    pub fn release(
        &self,
        address: IpAddr,
        body: &[u8],
        exporter: &Exporter,
    ) -> Result<Granted, (Refused, Option<RefusalNote>)> {
        let now = (self.clock)();
        let request = KeyReleaseRequest::from_canonical(body).map_err(|e| (malformed(&e), None))?;
        let asked = (request.model.clone(), Sha256Digest::of(request.evidence.as_slice()));
        let challenge = Sha256Digest::of(&request.token.challenge());
        let expires = request.token.expires();
        // A request that redeemed no challenge leaves no trace on the log: anybody can send those.
        let (key, maker) = self.tokens.of(&request.token);
        let checked = Checked::new(request, &key, now).map_err(|e| (Refused::because(vec![e]), None))?;
        // Made while the clock was ahead: it would last until the clock comes there again. Replicas' clocks may differ.
        if expires > now.saturating_add(2 * CHALLENGE_SECONDS) {
            let detail = format!("the token was made at another time: it ends at {expires}, it is {now}");
            let refusal = Refusal::new("challenge_expired", "token", detail, "ask for a new challenge");
            return Err((Refused::because(vec![refusal]), None));
        }
        let generation = self.redeem(checked.token(), maker, now).map_err(|e| (e, None))?;
        let challenged = checked.redeemed();
        let note = |refused: Refused| {
            let codes = refused.codes().iter().take(MAX_CODES).map(|code| (*code).to_owned()).collect();
            let entry = RefusalEntry {
                schema: RefusalEntry::SCHEMA.to_owned(),
                unix: now,
                model: Some(asked.0.clone()),
                evidence: Some(asked.1),
                challenge: Some(challenge),
                codes,
            };
            (refused, Some(RefusalNote(Box::new(entry))))
        };
        let exporter = exporter(&challenged.challenge()).map_err(|e| note(Refused::unable("tls_exporter", &e)))?;
        let pin = self.identity.spki_sha256();
        let standing = self.grounds.at(generation, &self.store, &pin, now).map_err(&note)?;
        let Standing { demand, releases, owners, .. } = &*standing;
        let owner = match owners.get(asked.0.identity()) {
            None => None,
            Some(Some(owner)) => Some(owner),
            Some(None) => return Err(note(Refused::unable("store_unavailable", &"the owner's policy can't be read"))),
        };
        let collateral = self.collateral();
        let gpu = Arc::clone(&self.gpu.read().unwrap_or_else(PoisonError::into_inner));
        let grounds = Grounds {
            collateral: &collateral.in_force,
            anchors: &self.anchors,
            known: &self.known,
            releases,
            policy: &demand.policy,
            rules: demand.rules(),
            owner_policy: owner.map(|owner| &owner.policy),
            owner_rules: owner.and_then(Demand::rules),
            gpu: gpu.grounds(),
            now,
        };
        let started = Instant::now();
        let appraised = challenged.appraise(&exporter, &grounds);
        self.gauges.appraisals.observe(started.elapsed());
        let appraised = appraised.map_err(|e| note(Refused::because(e)))?;
        let policies: Vec<_> = [demand.digest].into_iter().chain(owner.map(|owner| owner.digest)).collect();
        let result = result::of(appraised.verdict(), &policies, challenge, now);
        let answer = self.authorise(appraised, now).map_err(&note)?;
        // Another replica counts its own.
        if maker.is_none() {
            self.admission.answered(address, expires);
        }
        // Signed only now: no token speaks of a key that was not released.
        Ok(Granted { answer, result: result::sign(&self.results, &result) })
    }

    /// Forgets challenges that are past their expiry anyway, so that the store does not grow for ever.
    pub fn prune(&self) {
        match self.store.prune_redeemed((self.clock)()) {
            Ok(0) => {}
            Ok(pruned) => tracing::info!(pruned, "expired challenges forgotten"),
            Err(error) => tracing::warn!(%error, "expired challenges could not be forgotten"),
        }
    }

    /// The bundle of an imported release.
    ///
    /// # Errors
    /// Not there, or the store can't read.
    pub fn release_bundle(&self, digest: &Sha256Digest) -> Result<Vec<u8>, Refused> {
        let found = self.store.release(digest).map_err(|e| Refused::unable("store_unavailable", &e))?;
        found.map(|release| release.bundle).ok_or_else(not_found)
    }

    /// The audit log's newest checkpoint.
    ///
    /// # Errors
    /// The log can't be read.
    pub fn checkpoint(&self) -> Result<String, Refused> {
        let checkpoint = self.store.checkpoint().map_err(|e| Refused::unable("audit_unavailable", &e))?;
        Ok(checkpoint.note().to_owned())
    }

    /// A tile or entry bundle of the audit log, by its path (`tile/…`).
    ///
    /// # Errors
    /// Not there, or the log can't be read.
    pub fn tile(&self, path: &str) -> Result<Vec<u8>, Refused> {
        let path = path.parse().map_err(|_| not_found())?;
        self.store.tile(&path).map_err(|error| match error {
            release::log::TileError::Read { .. } => Refused::unable("audit_unavailable", &error),
            _ => not_found(),
        })
    }

    fn collateral(&self) -> Arc<KnownCollateral> {
        Arc::clone(&self.collateral.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn redeem(&self, token: &Token, maker: Option<ReplicaId>, now: u64) -> Result<Generation, Refused> {
        let redeemed = self.store.redeem_made_by(maker, &token.digest(), token.expires(), now);
        let generation = redeemed.map_err(|error| {
            let (code, fix) = match &error {
                RedeemError::AlreadyRedeemed => ("challenge_replayed", "ask for a new challenge; each is good once"),
                RedeemError::Expired => ("challenge_expired", "ask for a new challenge"),
                RedeemError::Void => ("challenge_unknown", "ask for a new challenge"),
                RedeemError::Database(_) | RedeemError::Batch(_) => {
                    return Refused::unable("store_unavailable", &error);
                }
            };
            Refused::because(vec![Refusal::new(code, "token", error.to_string(), fix)])
        })?;
        Ok(generation)
    }

    fn milliseconds(&self) -> u64 {
        (self.stopwatch)()
    }

    /// From an accepted appraisal to the sealed key: key, audit entry on disk, seal.
    fn authorise(&self, appraised: Appraised, now: u64) -> Result<KeyReleaseAnswer, Refused> {
        let refuse = |code: &str, field: &str, detail: &str, fix: &str| {
            Refused::because(vec![Refusal::new(code, field, detail, fix)])
        };
        let unable = |e: &dyn core::fmt::Display| Refused::unable("store_unavailable", e);
        self.admission.model(appraised.model().identity(), self.milliseconds())?;
        let key = match self.store.key_for(appraised.model(), appraised.platform()) {
            Ok(Some(key)) => key,
            Err(KeyStoreError::PlatformRevoked) => {
                return Err(refuse("platform_revoked", "platform", "the platform was revoked", "use another platform"));
            }
            Ok(None) => {
                let detail = format!("no key of {} was imported", appraised.model());
                return Err(refuse("model_key_missing", "model", &detail, "import the model's key into the service"));
            }
            Err(KeyStoreError::Revoked) => {
                return Err(refuse("model_revoked", "model", "the model was revoked", "serve its successor"));
            }
            Err(KeyStoreError::Wrap(error @ WrapError::Unavailable(_))) => {
                return Err(Refused::unable("kek_unavailable", &error));
            }
            Err(error) => return Err(unable(&error)),
        };
        let ModelKey { version, key, tenants, settled } = key;
        let entered = appraised.enter(version, tenants, now).map_err(|e| unable(&e))?;
        let audit = |e: &dyn core::fmt::Display| Refused::unable("audit_unavailable", e);
        let started = Instant::now();
        let proof = self.store.append_entry(entered.entry(), settled).map_err(|e| audit(&e))?;
        self.gauges.entries.observe(started.elapsed());
        let authorised = entered.authorised(proof, &self.audit).map_err(|e| audit(&e))?;
        authorised.release(&key, &mut UnwrapErr(getrandom::SysRng)).map_err(|error| match error {
            // No command sets such a document: somebody wrote the database.
            SealError::Tenants => unable(&error),
            SealError::PublicKey | SealError::Open => {
                refuse("hpke_key", "hpke_key", &error.to_string(), "make a new X25519 key for the release")
            }
        })
    }
}

/// The appraisal policy of a store; the one that accepts any imported release where none was set.
pub(crate) fn policy(store: &Store) -> Result<Result<Policy, appraise::PolicyError>, store::DatabaseError> {
    Ok(Policy::from_json(&policy_bytes(store)?))
}

/// Its bytes, as they were set.
pub(crate) fn policy_bytes(store: &Store) -> Result<Vec<u8>, store::DatabaseError> {
    Ok(store.policy(APPRAISAL_POLICY)?.unwrap_or_else(|| ANY_RELEASE.to_vec()))
}

/// Verifies a stored release under the trust policy that it was imported with.
pub(crate) fn verified(
    store: &Store,
    digest: &Sha256Digest,
    bundle: &[u8],
    now: u64,
) -> Result<VerifiedRelease, StoredReleaseError> {
    let trust = store.policy(&trust_policy_name(digest))?.ok_or(StoredReleaseError::NoTrust)?;
    let trust = TrustPolicy::parse(&trust)?;
    Ok(VerifiedRelease::verify(bundle, &trust, now)?)
}

/// Why a stored release is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoredReleaseError {
    #[error(transparent)]
    Store(#[from] store::DatabaseError),
    #[error("it was imported without a trust policy")]
    NoTrust,
    #[error(transparent)]
    Trust(#[from] release::TrustPolicyError),
    #[error(transparent)]
    Release(#[from] release::ReleaseError),
}

/// Name under which the trust policy of a release is stored.
pub(crate) fn trust_policy_name(digest: &Sha256Digest) -> String {
    format!("release-trust:{digest}")
}

fn malformed(error: &CanonicalError) -> Refused {
    Refused::malformed("body", error.to_string())
}

fn not_found() -> Refused {
    let reason = Refusal::new("not_found", "path", "there is nothing under this path", "see the protocol's page");
    Refused::one(StatusCode::NOT_FOUND, reason)
}

/// The policy where none was set: any imported release, any model, on any platform that is up to date.
pub(crate) const ANY_RELEASE: &[u8] = b"{\"schema\":\"chrysalis/appraisal-policy/v1\"}";
/// Name of the appraisal policy in the store.
pub(crate) const APPRAISAL_POLICY: &str = "appraisal";
/// How long a challenge lasts, in seconds.
pub const CHALLENGE_SECONDS: u64 = 60;
const MAX_CODES: usize = 64;
