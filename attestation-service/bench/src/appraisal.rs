// SPDX-License-Identifier: Apache-2.0
//! What one appraisal costs, against `dcap-qvl`'s verification of the same quote.

use anyhow::Context as _;
use appraise::{GpuGrounds, Policy};
use attestation_bench::{Guest, Scene, model};
use dcap_qvl::{QuoteCollateralV3, verify::QuoteVerifier};
use key_release::{Checked, Grounds, KeyReleaseRequest, ReleaseKeyPair, TokenKey, UnwrapErr};
use release::VerifiedRelease;
use tdx_verify::{Collateral, KnownPlatforms, PlatformPolicy, TrustAnchors};
use types::{Base64, Document as _, Evidence};

use crate::figure::{Figure, quantile};

/// Everything that one appraisal needs.
struct Works {
    request: Vec<u8>,
    quote: Vec<u8>,
    tokens: TokenKey,
    root: Vec<u8>,
    theirs: QuoteCollateralV3,
    ours: Vec<Collateral>,
    anchors: TrustAnchors,
    releases: Vec<VerifiedRelease>,
    policy: Policy,
    known: KnownPlatforms,
    now: u64,
}

pub(crate) fn measure(scene: &Scene, rounds: u16) -> anyhow::Result<Vec<Figure>> {
    let works = Works::new(scene)?;
    let all: [fn(&Works) -> anyhow::Result<()>; 4] = [Works::dcap_qvl, Works::cold, Works::warm, Works::whole];
    let mut seconds = [const { Vec::new() }; 4];
    for round in 0..=rounds {
        for (work, seconds) in all.iter().zip(&mut seconds) {
            let start = processor_seconds();
            work(&works)?;
            // The first round only warms up.
            if round > 0 {
                seconds.push(processor_seconds() - start);
            }
        }
    }
    let [peer, cold, warm, whole] = seconds.map(|mut seconds| quantile(&mut seconds, 0.5) * 1000.0);
    let against = "dcap-qvl's own verification of the same quote";
    Ok(vec![
        Figure::plain("dcap-qvl's own verification", peer, "ms"),
        Figure::peer("the quote's verification, cold", cold, "ms", against, peer, 1.1),
        Figure::peer("the quote's verification, warm", warm, "ms", against, peer, 1.0 / 3.0),
        Figure::compared("whole appraisal of a request, warm", whole, "ms", against, peer),
    ])
}

impl Works {
    fn new(scene: &Scene) -> anyhow::Result<Self> {
        let guest = Guest::boot(scene)?;
        let tokens = TokenKey::new([7; 32]);
        let token = tokens.mint(scene.made.saturating_add(60), [1; 16]);
        let key = ReleaseKeyPair::generate(&mut UnwrapErr(getrandom::SysRng));
        let evidence = guest.evidence(&token.challenge(), &EXPORTER, key.public())?;
        let quote = Evidence::from_canonical(&evidence)?.quote.as_slice().to_vec();
        let request = KeyReleaseRequest {
            schema: KeyReleaseRequest::SCHEMA.to_owned(),
            token,
            model: model()?,
            evidence: Base64::new(evidence).context("evidence")?,
            work: None,
        };
        let collateral = scene.platform.collateral(scene.made, None)?.to_json();
        let root = scene.platform.root_der().to_vec();
        let (bundle, trust) = sample_release::publish(&scene.statement, scene.made);
        Ok(Self {
            request: request.to_canonical()?,
            quote,
            tokens,
            anchors: TrustAnchors::custom(root.clone()),
            root,
            theirs: serde_json::from_str(&collateral)?,
            ours: vec![Collateral::from_json(collateral.as_bytes())?],
            releases: vec![VerifiedRelease::verify(&bundle, &trust, scene.made)?],
            policy: Policy { service_pins: Some(vec![scene.pin()]), ..Policy::any_release() },
            known: KnownPlatforms::default(),
            now: scene.made,
        })
    }

    fn dcap_qvl(&self) -> anyhow::Result<()> {
        QuoteVerifier::new(self.root.clone()).verify(&self.quote, &self.theirs, self.now).map(drop)
    }

    /// A platform that was never seen: it is known afterwards.
    fn cold(&self) -> anyhow::Result<()> {
        self.platform(&KnownPlatforms::default())
    }

    /// A platform that is known.
    fn warm(&self) -> anyhow::Result<()> {
        self.platform(&self.known)
    }

    fn platform(&self, known: &KnownPlatforms) -> anyhow::Result<()> {
        let refused = |refused: tdx_verify::QuoteRefused| anyhow::anyhow!("{:?}", refused.faults);
        let examined = known.examine(&self.quote, &self.ours, &self.anchors, self.now).map_err(refused)?;
        examined.judge(&PlatformPolicy::default()).map(drop).map_err(refused)
    }

    /// From the request's bytes to the accepted evidence; not the redemption, the audit log and the sealing.
    fn whole(&self) -> anyhow::Result<()> {
        let request = KeyReleaseRequest::from_canonical(&self.request)?;
        let checked = Checked::new(request, &self.tokens, self.now).map_err(|refused| anyhow::anyhow!("{refused}"))?;
        let grounds = Grounds {
            collateral: &self.ours,
            anchors: &self.anchors,
            known: &self.known,
            releases: &self.releases,
            policy: &self.policy,
            rules: None,
            owner_policy: None,
            owner_rules: None,
            gpu: GpuGrounds::NVIDIA,
            now: self.now,
        };
        checked.redeemed().appraise(&EXPORTER, &grounds).map(drop).map_err(|reasons| anyhow::anyhow!("{reasons:?}"))
    }
}

/// Processor time of this thread so far.
pub(crate) fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    std::time::Duration::try_from(time).unwrap_or_default().as_secs_f64()
}

const EXPORTER: [u8; 32] = [3; 32];
