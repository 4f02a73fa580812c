// SPDX-License-Identifier: Apache-2.0
//! One quote on both paths.

use tdx_sim::verdict::{lenient, told};
use tdx_verify::{Collateral, KnownPlatforms, PlatformPolicy, TrustAnchors, VerifiedQuote};

/// Platforms that may be known, beside nothing known.
pub(crate) struct Both {
    pub(crate) known: KnownPlatforms,
    nothing: KnownPlatforms,
    collateral: Vec<Collateral>,
    anchors: TrustAnchors,
}

impl Both {
    pub(crate) fn new(collateral: Vec<Collateral>, anchors: TrustAnchors) -> Self {
        Self { known: KnownPlatforms::default(), nothing: KnownPlatforms::new(0), collateral, anchors }
    }

    /// Demands the same of both paths, under a strict and under a lenient policy; gives back what the lenient accepts.
    pub(crate) fn agree(&self, quote: &[u8], now: u64) -> Option<VerifiedQuote> {
        let of = |known: &KnownPlatforms, policy: &PlatformPolicy| {
            known.examine(quote, &self.collateral, &self.anchors, now).and_then(|examined| examined.judge(policy))
        };
        let lenient = lenient();
        for policy in [&PlatformPolicy::default(), &lenient] {
            let (warm, cold) = (of(&self.known, policy), of(&self.nothing, policy));
            assert_eq!(told(&warm), told(&cold), "at {now}");
        }
        of(&self.known, &lenient).ok()
    }
}

/// The quote with more bytes behind its PCK chain, all lengths adjusted. Version 4.
pub(crate) fn with_longer_chain(quote: &[u8], more: &[u8]) -> Vec<u8> {
    let mut longer = [quote, more].concat();
    let (signature_len, outer) = (48 + 584, 48 + 584 + 4 + 128);
    let chain = outer + 6 + 384 + 64;
    let auth = usize::from(u16::from_le_bytes([quote[chain], quote[chain + 1]]));
    for at in [signature_len, outer + 2, chain + 2 + auth + 2] {
        let len = u32::from_le_bytes(longer[at..at + 4].try_into().unwrap()) + u32::try_from(more.len()).unwrap();
        longer[at..at + 4].copy_from_slice(&len.to_le_bytes());
    }
    longer
}
