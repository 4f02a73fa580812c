// SPDX-License-Identifier: Apache-2.0
//! The model key, asked for once; then the attester is sealed, and with the event `keys-closed` nobody can ask again.

use model::Key;
use types::GuestConfig;

use crate::boot::{Boot, Failure};
use crate::boot::{Code, Fails as _};

pub(crate) fn run(boot: &mut Boot, config: &GuestConfig) -> Result<Key, Failure> {
    let mut service = boot.service.take().ok_or(Code::ServiceUnreachable.alone())?;
    let attester = boot.attester()?;
    let key = service.model_key(&config.model.0, |challenge, binding, hpke_key| {
        attester.key_release_evidence(challenge, binding, hpke_key)
    })?;
    Ok(Key::new(&key))
}

/// Before the event `keys-closed` is extended.
pub(crate) fn close(boot: &mut Boot) -> Result<(), Failure> {
    boot.attester()?.seal()
}
