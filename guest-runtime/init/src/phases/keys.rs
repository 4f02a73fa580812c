// SPDX-License-Identifier: Apache-2.0
//! The model key, asked for once; then the attester is sealed, and with the event `keys-closed` nobody can ask again.

use model::Key;
use types::GuestConfig;
use zeroize::Zeroizing;

use crate::boot::{Boot, Failure};
use crate::boot::{Code, Fails as _};

/// The document of a model's tenants, which holds to its rules, and is wiped when it was handed on.
pub(crate) type TenantsDocument = Zeroizing<Vec<u8>>;

/// Gives the key, and the document of the model's tenants where it has one.
pub(crate) fn run(boot: &mut Boot, config: &GuestConfig) -> Result<(Key, Option<TenantsDocument>), Failure> {
    let mut service = boot.service.take().ok_or(Code::ServiceUnreachable.alone())?;
    let attester = boot.attester()?;
    let released = service.model_key(&config.model.0, |challenge, binding, hpke_key| {
        attester.key_release_evidence(challenge, binding, hpke_key)
    })?;
    Ok((Key::new(&released.key), released.tenants))
}

/// Before the event `keys-closed` is extended.
pub(crate) fn close(boot: &mut Boot) -> Result<(), Failure> {
    boot.attester()?.seal()
}
