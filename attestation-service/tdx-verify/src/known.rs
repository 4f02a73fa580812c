// SPDX-License-Identifier: Apache-2.0
//! Platforms whose PCK chain `dcap-qvl` accepted, kept so that their next quotes take the warm path.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use dcap_qvl::QuoteClaims;
use der::Decode as _;
use types::Sha256Digest;
use x509_cert::Certificate;

use crate::{
    Collateral, QuoteFault, QuoteRefused, TrustAnchors,
    examine::{Examined, Formed, platform_name},
    unreadable,
    warm::{Warm, report_digest},
};

/// What is known of platforms from quotes that were verified whole.
///
/// A platform is known under exactly one collateral and one set of anchors, both compared at every use, and only
/// between the latest begin and the earliest end of everything that its chain rests on: certificates, revocation
/// lists, TCB information, QE identity. Other collateral (after a revocation, above all) is other bytes, and nothing
/// that was known under the old ones is used. No verdict is kept: each quote's own signature, its quoting enclave,
/// TCB level and fields are checked every time, and policies judge every time.
///
/// Bounded; the platform that was not used for longest goes first. Only somebody with a genuine platform can add one,
/// and one PCK certificate has one place.
#[derive(Debug)]
pub struct KnownPlatforms {
    slots: Mutex<Slots>,
    capacity: usize,
}

/// How often which path was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uses {
    /// Quotes of known platforms.
    pub warm: u64,
    /// Quotes that `dcap-qvl` judged.
    pub cold: u64,
}

/// A platform whose PCK chain was accepted together with collateral.
#[derive(Debug)]
pub(crate) struct Platform {
    anchors: TrustAnchors,
    /// Digest of the collateral.
    collateral: Sha256Digest,
    /// Digest of the PCK certificate.
    certificate: Sha256Digest,
    /// The certificate's key, an uncompressed point.
    pub(crate) pck_key: Vec<u8>,
    pub(crate) name: Sha256Digest,
    pub(crate) fmspc: [u8; 6],
    pub(crate) cpu_svn: [u8; 16],
    pub(crate) pce_svn: u16,
    pub(crate) evaluation_data_number: u32,
    /// The latest begin.
    from: u64,
    /// The earliest end. The platform is not known at that second any more.
    pub(crate) until: u64,
}

/// By the digest of the chain's bytes.
#[derive(Debug, Default)]
struct Slots {
    by_chain: BTreeMap<Sha256Digest, Slot>,
    /// Counts uses, as a clock for the order of them.
    turn: u64,
    uses: Uses,
}

#[derive(Debug)]
struct Slot {
    platform: Arc<Platform>,
    used: u64,
    /// The last report of a quoting enclave whose signature verified under this PCK certificate.
    report: Option<Sha256Digest>,
}

impl Default for KnownPlatforms {
    fn default() -> Self {
        Self::new(CAPACITY)
    }
}

impl KnownPlatforms {
    /// Keeps at most `capacity` platforms, each less than 1 KiB.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { slots: Mutex::default(), capacity }
    }

    /// Examines exactly the bytes of a quote at `now` (seconds since 1970) under that of `collateral` which is for its
    /// platform: by the warm path where the platform is known under it, otherwise whole.
    ///
    /// # Errors
    /// [`QuoteRefused`] when the form is wrong, or no collateral is for the platform. All else comes out of
    /// [`Examined::judge`].
    pub fn examine<'a>(
        &self,
        quote: &'a [u8],
        collateral: &[Collateral],
        anchors: &TrustAnchors,
        now: u64,
    ) -> Result<Examined<'a>, QuoteRefused> {
        let formed = Formed::read(quote)?;
        let chain = Sha256Digest::of(formed.section.pck_chain);
        if let Some((platform, seen_report)) = self.find(&chain, anchors, now)
            && let Some(selected) = collateral.iter().find(|collateral| *collateral.fmspc() == platform.fmspc)
            && selected.digest == platform.collateral
            && let Some(tables) = &selected.tables
        {
            let (quote, section) = (&formed.quote, &formed.section);
            let warm = Warm { quote, section, platform: &platform, tables, seen_report };
            let result = warm.claims();
            let verified = result.is_ok().then(|| report_digest(section)).filter(|report| seen_report != Some(*report));
            self.lock().used(&chain, verified);
            return Ok(formed.finish(result, Vec::new(), anchors, now));
        }
        let certificate = pck_certificate(quote);
        let fmspc = certificate.as_ref().and_then(|der| dcap_qvl::intel::parse_pck_extension(der).ok());
        let selected = fmspc.and_then(|pck| collateral.iter().find(|collateral| *collateral.fmspc() == pck.fmspc));
        let missing = || QuoteRefused { faults: vec![QuoteFault::CollateralMissing] };
        let selected = selected.ok_or_else(|| unreadable(quote).unwrap_or_else(missing))?;
        let (examined, theirs) = formed.examine(selected, anchors, now);
        self.lock().uses.cold += 1;
        if let (Some(theirs), Some(certificate)) = (theirs, certificate)
            && examined.chain_accepted()
            && let Some(platform) = Platform::of(&theirs, &certificate, selected, anchors)
        {
            self.lock().keep(chain, platform, self.capacity);
        }
        Ok(examined)
    }

    /// Forgets what is known under other collateral than this. It would not be used any more anyway.
    pub fn keep_only(&self, collateral: &[Collateral]) {
        let in_force = |slot: &Slot| collateral.iter().any(|collateral| collateral.digest == slot.platform.collateral);
        self.lock().by_chain.retain(|_, slot| in_force(slot));
    }

    /// How many platforms are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().by_chain.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often which path was taken so far.
    #[must_use]
    pub fn uses(&self) -> Uses {
        self.lock().uses
    }

    fn find(
        &self,
        chain: &Sha256Digest,
        anchors: &TrustAnchors,
        now: u64,
    ) -> Option<(Arc<Platform>, Option<Sha256Digest>)> {
        let slots = self.lock();
        let slot = slots.by_chain.get(chain)?;
        let platform = &slot.platform;
        let holds = platform.anchors == *anchors && (platform.from..platform.until).contains(&now);
        holds.then(|| (Arc::clone(platform), slot.report))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn used(&mut self, chain: &Sha256Digest, report: Option<Sha256Digest>) {
        self.turn = self.turn.saturating_add(1);
        self.uses.warm = self.uses.warm.saturating_add(1);
        if let Some(slot) = self.by_chain.get_mut(chain) {
            slot.used = self.turn;
            slot.report = report.or(slot.report);
        }
    }

    fn keep(&mut self, chain: Sha256Digest, platform: Platform, capacity: usize) {
        // The same certificate in other bytes around it takes the place that it has.
        self.by_chain.retain(|_, slot| slot.platform.certificate != platform.certificate);
        while self.by_chain.len() >= capacity {
            let oldest = self.by_chain.iter().min_by_key(|(_, slot)| slot.used).map(|(chain, _)| *chain);
            let Some(oldest) = oldest else { return };
            self.by_chain.remove(&oldest);
        }
        self.turn = self.turn.saturating_add(1);
        let slot = Slot { platform: Arc::new(platform), used: self.turn, report: None };
        self.by_chain.insert(chain, slot);
    }
}

impl Platform {
    /// `certificate` is the one that `dcap-qvl` verified: its own extraction gave it.
    fn of(theirs: &QuoteClaims, certificate: &[u8], collateral: &Collateral, anchors: &TrustAnchors) -> Option<Self> {
        collateral.tables.as_ref()?;
        let parsed = Certificate::from_der(certificate).ok()?;
        let pck_key = parsed.tbs_certificate().subject_public_key_info().subject_public_key.as_bytes()?.to_vec();
        let pck = &theirs.platform.pck;
        Some(Self {
            anchors: anchors.clone(),
            collateral: collateral.digest,
            certificate: Sha256Digest::of(certificate),
            pck_key,
            name: platform_name(&pck.ppid),
            fmspc: pck.fmspc,
            cpu_svn: pck.cpu_svn,
            pce_svn: pck.pce_svn,
            evaluation_data_number: theirs.tcb.eval_data_number,
            from: theirs.latest_issue_date,
            until: theirs.earliest_expiration_date,
        })
    }
}

/// The PCK certificate of a quote, as `dcap-qvl` takes it from there.
fn pck_certificate(quote: &[u8]) -> Option<Vec<u8>> {
    let parsed = dcap_qvl::quote::Quote::parse(quote).ok()?;
    dcap_qvl::intel::extract_cert_chain(&parsed).ok()?.into_iter().next()
}

/// Platforms that are kept by default.
const CAPACITY: usize = 4096;
