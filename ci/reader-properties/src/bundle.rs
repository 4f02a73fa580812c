// SPDX-License-Identifier: Apache-2.0
//! Releases: a statement has one spelling, and no bundle is accepted but for what its key signed.

use std::sync::OnceLock;

use release::{Bundle, ReleaseError, Statement, VerifiedRelease};

use crate::{document::canonical_form, seeds};

/// Release statements: the bytes as they are, and their canonical form.
pub fn statement(bytes: &[u8]) -> bool {
    let accepted = one_statement(bytes);
    canonical_form(bytes).map_or(accepted, |canonical| accepted | one_statement(&canonical))
}

fn one_statement(bytes: &[u8]) -> bool {
    let Ok(statement) = Statement::parse(bytes) else { return false };
    assert_eq!(statement.to_canonical().as_deref(), Ok(bytes), "an accepted statement has one spelling");
    let values = &statement.predicate;
    assert!(values.validity.not_before < values.validity.not_after);
    for component in [&values.components.firmware, &values.components.kernel, &values.components.initrd] {
        assert!(statement.subject.iter().any(|subject| subject.digest.sha256 == component.sha256));
    }
    let again = Statement::new(statement.subject.clone(), values.clone());
    assert_eq!(again.as_ref(), Ok(&statement), "what was read can be made");
    true
}

/// Release bundles, read and verified.
pub fn bundle(bytes: &[u8]) -> bool {
    let Ok(bundle) = Bundle::from_json(bytes) else {
        assert!(VerifiedRelease::verify(bytes, seeds::trust(), seeds::NOW).is_err(), "what is no bundle was accepted");
        return false;
    };
    let written = bundle.to_json().expect("a bundle can be written");
    assert_eq!(Bundle::from_json(&written).as_ref(), Ok(&bundle), "a bundle survives being written");
    let verified = VerifiedRelease::verify(bytes, seeds::trust(), seeds::NOW);
    if let Ok(release) = &verified {
        // The only statement that this key ever signed.
        assert_eq!(release.digest(), &genuine().digest(), "a release was forged");
        assert!(release.is_valid_at(seeds::NOW) && release.checkpoint().head() == genuine_head());
    }
    // The same statement under a good signature, in a good log, is accepted when the statement is good.
    if verified.is_err() && Statement::parse(bundle.payload()).is_ok() {
        let published = seeds::publish(bundle.payload()).expect("a good statement can be published");
        match VerifiedRelease::verify(&published, seeds::trust(), seeds::NOW) {
            Ok(release) => assert_eq!(release.digest(), &bundle.digest()),
            Err(ReleaseError::Validity { validity, now }) => assert!(!validity.contains(now)),
            Err(error) => assert_eq!(error.code(), "", "a good release was refused: {error}"),
        }
    }
    verified.is_ok()
}

fn genuine() -> &'static Bundle {
    static BUNDLE: OnceLock<Bundle> = OnceLock::new();
    BUNDLE.get_or_init(|| Bundle::from_json(&seeds::bundle()).expect("the seed is a bundle"))
}

fn genuine_head() -> &'static release::log::Checkpoint {
    static RELEASE: OnceLock<VerifiedRelease> = OnceLock::new();
    RELEASE
        .get_or_init(|| VerifiedRelease::verify(&seeds::bundle(), seeds::trust(), seeds::NOW).expect("the seed"))
        .checkpoint()
        .head()
}
