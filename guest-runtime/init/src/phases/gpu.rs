// SPDX-License-Identifier: Apache-2.0
//! Evidence of the machine's GPUs, and the guest's own verdict on it before they may work; then the attester gets what evidence
//! will say. A machine whose configuration names no GPU must not have one.

mod collector;
mod judge;
mod statements;

use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
};

use attester_protocol::Configuration;
use gpu_verify::GpuAnchors;
use linux_sys::pci::{self, Class};
use types::{Base64, EventName, GuestConfig, evidence::MAX_FIRMWARE_LOG};

use judge::Expected;
use statements::Host;

use crate::boot::{Boot, Facts, Failure};
use crate::boot::{Code, Fails as _};

/// How many there are was compared with the configuration in the phase `lockdown` first, before any driver ran.
pub(crate) fn run(boot: &mut Boot, config: &GuestConfig) -> Result<(), Failure> {
    match config.gpus.0 {
        0 if has_vendor(Path::new("/sys/bus/pci/devices"), NVIDIA) => return Err(Code::GpuUnexpected.alone()),
        0 => {}
        gpus => collect(boot, gpus)?,
    }
    let facts = boot.facts.as_ref().ok_or(Code::ConfigMalformed.alone())?;
    let Facts { config, config_digest: _, model: _, time, gpu } = facts;
    let configuration = Configuration {
        guest_config: Base64::new(config.clone()).ok_or(Code::ConfigMalformed.alone())?,
        time: time.clone(),
        gpu: gpu.clone(),
        firmware_log: firmware_log(Path::new(FIRMWARE_LOG)),
    };
    boot.attester()?.configure(configuration)
}

/// No GPU works before its evidence was accepted. What the attester says later, and every verifier judges again, is the same.
fn collect(boot: &mut Boot, gpus: u8) -> Result<(), Failure> {
    let expected = Expected { gpus, switches: counted(Class::Switch)? };
    let instance_key = boot.attester()?.instance_key;
    let inherits_stderr = boot.console.is_open();
    let facts = boot.facts.as_mut().ok_or(Code::ConfigMalformed.alone())?;
    let now = facts.time.attested.as_ref().map(|time| time.unix).ok_or(Code::TimeNotSigned.alone())?;
    let gpu = collector::evidence(expected, &instance_key, inherits_stderr)?;
    judge::check(&gpu, expected, &instance_key, &GpuAnchors::nvidia(), now)?;
    let notes = statements::check(&gpu, &mut Host::connect(), &GpuAnchors::nvidia(), now)?;
    collector::let_work(inherits_stderr)?;
    facts.gpu = gpu;
    notes.into_iter().for_each(|note| boot.note(EventName::Gpu, note));
    // A host can announce a device at any time. One that came meanwhile has no driver, and ends the boot all the same.
    let found = Expected { gpus: counted(Class::Gpu)?, switches: counted(Class::Switch)? };
    if found == expected { Ok(()) } else { Err(Code::GpuCountMismatch.alone()) }
}

fn counted(class: Class) -> Result<u8, Failure> {
    let count = pci::nvidia(class).map_err(Code::GpuCountMismatch.because())?;
    u8::try_from(count).map_err(Code::GpuCountMismatch.because())
}

fn has_vendor(devices: &Path, vendor: &str) -> bool {
    fs::read_dir(devices)
        .into_iter()
        .flatten()
        .flatten()
        .any(|device| fs::read_to_string(device.path().join("vendor")).is_ok_and(|text| text.trim_end() == vendor))
}

/// The firmware's event log, where the machine has one. It only explains: evidence without it is as good.
fn firmware_log(path: &Path) -> Option<Base64<MAX_FIRMWARE_LOG>> {
    let mut bytes = Vec::new();
    let cap = u64::try_from(MAX_FIRMWARE_LOG).ok()?.checked_add(1)?;
    File::open(path).ok()?.take(cap).read_to_end(&mut bytes).ok()?;
    Base64::new(bytes)
}

const NVIDIA: &str = "0x10de";
const FIRMWARE_LOG: &str = "/sys/firmware/acpi/tables/data/CCEL";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_the_vendor_is_found() {
        let devices = tempfile::tempdir().unwrap();
        for (slot, vendor) in [("0000:00:01.0", "0x1af4\n"), ("0000:00:02.0", "0x8086\n")] {
            fs::create_dir(devices.path().join(slot)).unwrap();
            fs::write(devices.path().join(slot).join("vendor"), vendor).unwrap();
        }
        assert!(!has_vendor(devices.path(), NVIDIA));
        fs::create_dir(devices.path().join("0000:01:00.0")).unwrap();
        fs::write(devices.path().join("0000:01:00.0/vendor"), "0x10de\n").unwrap();
        assert!(has_vendor(devices.path(), NVIDIA));
        assert!(!has_vendor(Path::new("/nonexistent"), NVIDIA));
    }

    #[test]
    fn a_log_above_its_cap_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        assert!(firmware_log(&path).is_none());
        fs::write(&path, b"log").unwrap();
        assert_eq!(firmware_log(&path).unwrap().as_slice(), b"log");
        fs::write(&path, vec![0; MAX_FIRMWARE_LOG + 1]).unwrap();
        assert!(firmware_log(&path).is_none());
    }
}
