// SPDX-License-Identifier: Apache-2.0
//! The protocol as states that consume themselves. Each is made only by the one before it, so that no step can be
//! left out: no key without a proof of its audit entry, no entry without an accepted appraisal, no appraisal
//! without a redeemed challenge. IO happens between the states, in the service.

use appraise::{Accepted, Appraisal, Binding, GpuGrounds, Policy, Rules, Verdict, malformed_evidence};
use attested_channel::Moment;
use key_release_protocol::{CryptoRng, SealContext, SealError, is_solution, seal};
use release::{
    VerifiedRelease,
    log::{EntryProof, EntryProofError, ProofVerifier, leaf_hash},
};
use tdx_verify::{Collateral, KnownPlatforms, TrustAnchors};
use types::{
    CanonicalError, Document as _, Evidence, KeyReleaseEntry, ModelId, Refusal, Sha256Digest,
    audit::Authorised as Decision,
};

use crate::{KeyReleaseAnswer, KeyReleaseRequest, ModelKey, Token, TokenError, TokenKey};

/// A request whose token this service made and that has not expired. Its redemption must be recorded next.
#[derive(Debug)]
pub struct Checked(KeyReleaseRequest);

/// A request whose challenge was redeemed by it, and by nothing else.
#[derive(Debug)]
pub struct Challenged(KeyReleaseRequest);

/// A request whose evidence was accepted.
#[derive(Debug)]
pub struct Appraised {
    accepted: Accepted,
    verdict: Verdict,
}

/// A request whose audit entry is made but not yet logged.
#[derive(Debug)]
pub struct Entered {
    accepted: Accepted,
    key_version: u32,
    tenants: Option<Vec<u8>>,
    entry: Vec<u8>,
}

/// A release that stands in the audit log.
#[derive(Debug)]
pub struct Authorised {
    accepted: Accepted,
    key_version: u32,
    tenants: Option<Vec<u8>>,
    audit: EntryProof,
}

/// What evidence is appraised against.
#[derive(Debug, Clone, Copy)]
pub struct Grounds<'a> {
    /// Collateral for the platforms that may come.
    pub collateral: &'a [Collateral],
    /// Which hardware is believed.
    pub anchors: &'a TrustAnchors,
    /// Platforms whose chains were verified before, under the same collateral and anchors.
    pub known: &'a KnownPlatforms,
    /// Imported releases that verify now.
    pub releases: &'a [VerifiedRelease],
    /// What the service demands.
    pub policy: &'a Policy,
    /// The rules of that policy, where it has some.
    pub rules: Option<&'a dyn Rules>,
    /// What the model's owner demands beside that.
    pub owner_policy: Option<&'a Policy>,
    /// The rules of the owner's policy, where it has some.
    pub owner_rules: Option<&'a dyn Rules>,
    /// What evidence of GPUs is judged by.
    pub gpu: GpuGrounds<'a>,
    /// Seconds since 1970.
    pub now: u64,
}

/// Why an authorisation failed: the log's answer is not a proof of the entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthoriseError {
    /// The proof is about another entry.
    #[error("the audit log proved another entry than the one given to it")]
    Leaf,
    /// The proof does not verify.
    #[error("the audit log's proof does not verify: {0}")]
    Proof(#[from] EntryProofError),
}

impl Checked {
    /// Checks the token of a request, and the work that it asked for, before anything is stored or verified.
    ///
    /// # Errors
    /// The refusal.
    pub fn new(request: KeyReleaseRequest, key: &TokenKey, now: u64) -> Result<Self, Refusal> {
        Self::check(&request.token, request.work, key, now)?;
        Ok(Self(request))
    }

    /// Checks a token and the work that it asked for, without the rest of the request: a MAC and a hash. Establishes
    /// nothing about a request.
    ///
    /// # Errors
    /// The refusal.
    pub fn check(token: &Token, work: Option<u64>, key: &TokenKey, now: u64) -> Result<(), Refusal> {
        key.check(token, now).map_err(|error| token_refusal(&error))?;
        let bits = token.work_bits();
        if bits > 0 && !work.is_some_and(|number| is_solution(token, bits, number)) {
            return Err(no_work(bits));
        }
        Ok(())
    }

    /// The token, to record its redemption.
    #[must_use]
    pub const fn token(&self) -> &Token {
        &self.0.token
    }

    /// Goes on once the redemption was recorded, and was the first.
    #[must_use]
    pub fn redeemed(self) -> Challenged {
        Challenged(self.0)
    }
}

impl Challenged {
    /// The challenge.
    #[must_use]
    pub fn challenge(&self) -> [u8; 32] {
        self.0.token.challenge()
    }

    /// Reads and appraises the evidence. `exporter` is taken from the service's own side of the connection, for
    /// this challenge.
    ///
    /// # Errors
    /// All reasons for a refusal, in the documented order.
    pub fn appraise(self, exporter: &[u8; 32], grounds: &Grounds<'_>) -> Result<Appraised, Vec<Refusal>> {
        let Grounds { collateral, anchors, known, releases, policy, rules, owner_policy, owner_rules, gpu, now } =
            *grounds;
        let evidence =
            Evidence::from_canonical(self.0.evidence.as_slice()).map_err(|e| vec![malformed_evidence(&e)])?;
        let quote = evidence.quote.as_slice();
        let examined = known.examine(quote, collateral, anchors, now).map_err(|e| e.refusals())?;
        let challenge = self.challenge();
        let judge = |policy: &Policy, rules: Option<&dyn Rules>| {
            let quote = examined.judge(&policy.platform).map_err(|e| e.refusals())?;
            let binding = Binding::KeyRelease { challenge: &challenge, exporter };
            let appraisal =
                Appraisal { evidence: &evidence, binding, quote: &quote, releases, policy, rules, gpu, now };
            appraisal.accept().map_err(|verdict| verdict.reasons())
        };
        // One image may be published as several releases: the service's rules look at those that the owner lists.
        let listed = owner_policy.and_then(|owner| owner.releases.as_deref());
        let narrowed = listed.map(|listed| only(policy, listed));
        let mut judged = judge(narrowed.as_ref().unwrap_or(policy), rules)?;
        // Both must accept, and the same release; the owner's verdict is the narrower one.
        if let Some(owner_policy) = owner_policy {
            let services = *judged.0.release();
            judged = judge(owner_policy, owner_rules)?;
            let owners = *judged.0.release();
            if owners != services {
                judge(&only(policy, &[owners]), rules).map(drop)?;
            }
        }
        match judged {
            (accepted, verdict) if accepted.moment() == Moment::KeyRelease && *accepted.model() == self.0.model => {
                Ok(Appraised { accepted, verdict })
            }
            (accepted, _) => Err(vec![other_model(accepted.model(), &self.0.model)]),
        }
    }
}

impl Appraised {
    /// Every check of the appraisal.
    pub const fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The model whose key is asked for.
    #[must_use]
    pub const fn model(&self) -> &ModelId {
        self.accepted.model()
    }

    /// The release that the guest runs; it must not be revoked.
    #[must_use]
    pub const fn release(&self) -> &Sha256Digest {
        self.accepted.release()
    }

    /// Name of the guest's platform.
    #[must_use]
    pub const fn platform(&self) -> &Sha256Digest {
        self.accepted.platform()
    }

    /// Makes the audit entry at `now` for a key of version `key_version` and the document of its model's tenants, which
    /// is named by its digest.
    ///
    /// # Errors
    /// [`CanonicalError`] when `now` is out of range.
    pub fn enter(self, key_version: u32, tenants: Option<Vec<u8>>, now: u64) -> Result<Entered, CanonicalError> {
        let entry = KeyReleaseEntry {
            schema: KeyReleaseEntry::SCHEMA.to_owned(),
            unix: now,
            decision: Decision::Authorised,
            model: self.accepted.model().clone(),
            key_version,
            release: *self.accepted.release(),
            evidence: *self.accepted.evidence(),
            challenge: Sha256Digest::of(self.accepted.challenge()),
            platform: *self.accepted.platform(),
            tenants: tenants.as_deref().map(Sha256Digest::of),
        };
        let entry = entry.to_canonical()?;
        Ok(Entered { accepted: self.accepted, key_version, tenants, entry })
    }
}

impl Entered {
    /// The bytes that must stand in the audit log.
    #[must_use]
    pub fn entry(&self) -> &[u8] {
        &self.entry
    }

    /// Takes the log's proof that exactly this entry is in it. The log gives it only once the entry is on disk.
    ///
    /// # Errors
    /// [`AuthoriseError`].
    pub fn authorised(self, audit: EntryProof, log: &ProofVerifier) -> Result<Authorised, AuthoriseError> {
        if audit.leaf != leaf_hash(&self.entry) {
            return Err(AuthoriseError::Leaf);
        }
        log.verify(&audit)?;
        let Self { accepted, key_version, tenants, entry: _ } = self;
        Ok(Authorised { accepted, key_version, tenants, audit })
    }
}

impl Authorised {
    /// Seals the key to the guest, with the document that the entry names. Ends the protocol.
    ///
    /// # Errors
    /// [`SealError::PublicKey`] when the guest's key can't be used; [`SealError::Tenants`] for a document of a size that
    /// none has.
    pub fn release(self, key: &ModelKey, random: &mut impl CryptoRng) -> Result<KeyReleaseAnswer, SealError> {
        let Self { accepted, key_version, tenants, audit } = self;
        let context = SealContext {
            challenge: accepted.challenge(),
            model: accepted.model(),
            key_version,
            evidence: accepted.evidence(),
            audit_leaf: &audit.leaf,
        };
        let (enc, ciphertext) = seal(key, tenants.as_deref(), accepted.hpke_key(), &context, random)?;
        Ok(KeyReleaseAnswer {
            schema: KeyReleaseAnswer::schema_of(&ciphertext).to_owned(),
            model: accepted.model().clone(),
            key_version,
            enc,
            ciphertext,
            audit,
        })
    }
}

/// The policy, with no other releases than the listed ones.
fn only(policy: &Policy, listed: &[Sha256Digest]) -> Policy {
    let accepted = |release: &&Sha256Digest| policy.releases.as_ref().is_none_or(|own| own.contains(release));
    Policy { releases: Some(listed.iter().filter(accepted).copied().collect()), ..policy.clone() }
}

fn token_refusal(error: &TokenError) -> Refusal {
    let code = match error {
        TokenError::Mac => "challenge_unknown",
        TokenError::Expired { .. } => "challenge_expired",
    };
    Refusal::new(code, "token", error.to_string(), "ask for a new challenge")
}

fn no_work(bits: u8) -> Refusal {
    let detail = format!("the challenge asked for work of {bits} bits, the request brings no solution");
    Refusal::new("work_required", "work", detail, "solve what the challenge's work asks for; see the protocol's page")
}

fn other_model(configured: &ModelId, asked: &ModelId) -> Refusal {
    let detail = format!("the guest's configuration names {configured}, the request asks for {asked}");
    Refusal::new("model_mismatch", "model", detail, "ask for the model of the guest's configuration")
}
