// SPDX-License-Identifier: Apache-2.0
//! One quote proves many connections: what was accepted of it for the first is not judged again for each of the others.

use std::sync::Arc;

use attested_channel::verify_path;
use types::{ConnectionProof, Evidence, FreshnessKind, Role, Sha256Digest};

use crate::{
    Accepted, Appraisal, Binding, Verdict,
    binding::{kind_of, leaf},
};

/// An accepted proof, which those of other connections are compared with.
///
/// It holds for the appraisal that made it: its releases, its policy and its second. Who keeps one must ask it about proofs
/// that would be judged by the same alone.
#[derive(Debug, Clone)]
pub struct AcceptedQuote {
    accepted: Accepted,
    verdict: Arc<Verdict>,
    proof: ConnectionProof,
    kind: FreshnessKind,
    role: Role,
    spki_sha256: Sha256Digest,
    at: u64,
}

impl Appraisal<'_> {
    /// As [`Appraisal::accept`], for evidence that is bound to a connection by a [`ConnectionProof`].
    ///
    /// # Errors
    /// The verdict, when a check failed or the binding is of another kind.
    pub fn accept_quote(&self) -> Result<AcceptedQuote, Box<Verdict>> {
        let (accepted, verdict) = self.accept()?;
        let (Binding::Connection { proof, spki_sha256, .. } | Binding::GuestClient { proof, spki_sha256, .. }) =
            self.binding
        else {
            return Err(Box::new(verdict));
        };
        let Evidence { role, .. } = *self.evidence;
        let (proof, kind) = (proof.clone(), kind_of(&self.binding));
        Ok(AcceptedQuote {
            accepted,
            verdict: verdict.into(),
            proof,
            kind,
            role,
            spki_sha256: *spki_sha256,
            at: self.now,
        })
    }
}

impl AcceptedQuote {
    /// The acceptance of the connection that was judged.
    #[must_use]
    pub const fn accepted(&self) -> &Accepted {
        &self.accepted
    }

    /// The verdict. It names nothing of a single connection, so it is that of all which the quote proves.
    #[must_use]
    pub const fn verdict(&self) -> &Arc<Verdict> {
        &self.verdict
    }

    /// The acceptance of another connection, at `now`: its proof differs from the accepted one in its leaf alone, and that
    /// leaf, with the connection's own challenge and exporter, is in the quoted tree.
    ///
    /// `None` says nothing but that the proof must be judged as a whole.
    #[must_use]
    pub fn for_other(&self, binding: Binding<'_>, now: u64) -> Option<Accepted> {
        let (Binding::Connection { proof, challenge, exporter, spki_sha256 }
        | Binding::GuestClient { proof, challenge, exporter, spki_sha256 }) = binding
        else {
            return None;
        };
        // A new field of a proof must be handled here: all but the leaf's are the accepted ones.
        let ConnectionProof { schema, evidence, quote, receipt_head, receipt_count, freshness, leaf_index, path } =
            proof;
        let own = &self.proof;
        let is_same = now == self.at
            && kind_of(&binding) == self.kind
            && *spki_sha256 == self.spki_sha256
            && (schema, evidence, receipt_head) == (&own.schema, &own.evidence, &own.receipt_head)
            && (receipt_count, freshness, quote) == (&own.receipt_count, &own.freshness, &own.quote);
        let leaf = leaf(self.kind, self.role, challenge, exporter);
        let is_leaf = || verify_path(&leaf, *leaf_index, freshness.tree_size, path, &freshness.root).is_ok();
        (is_same && is_leaf()).then(|| Accepted { challenge: *challenge, ..self.accepted.clone() })
    }
}
