// SPDX-License-Identifier: Apache-2.0
//! The time as the pinned service signs it. The host owns every clock of the machine, so none is asked.

use types::GuestConfig;

use super::configuration::FLOOR;
use crate::boot::{Code, Fails as _};
use crate::{
    boot::{Boot, Failure},
    service::Service,
};

pub(crate) fn run(boot: &mut Boot, config: &GuestConfig) -> Result<(), Failure> {
    let mut service = Service::connect(config)?;
    let time = service.time(FLOOR)?;
    let facts = boot.facts.as_mut().ok_or(Code::ConfigMalformed.alone())?;
    facts.time.attested = Some(time);
    boot.service = Some(service);
    Ok(())
}
