// SPDX-License-Identifier: Apache-2.0
//! The configuration: from a disk that the host made, believed only because its digest is MRCONFIGID.

use std::io::{self, Read};

use linux_sys::block::open_by_serial;
use types::{Document as _, GuestConfig, Role, Sha384Digest, TimeState};

use crate::boot::{Code, Fails as _};
use crate::{
    attester::Attester,
    boot::{Boot, Facts, Failure, no_gpu},
};

pub(crate) fn run(boot: &mut Boot) -> Result<GuestConfig, Failure> {
    // With an attester the two events that have waited are extended first, with this phase's own.
    let attester = Attester::start(&mut boot.children, boot.console.is_open())?;
    let disk = open_by_serial(SERIAL).map_err(Code::ConfigDiskMissing.because())?;
    let bytes = read_disk(disk).map_err(Code::ConfigDiskMalformed.because())?;
    let config = check(&bytes, &attester.mr_config_id)?;
    boot.attester = Some(attester);
    boot.facts = Some(Facts {
        config_digest: GuestConfig::mr_config_id(&bytes),
        config: bytes,
        model: config.model.0.clone(),
        time: TimeState { floor: FLOOR, attested: None },
        gpu: no_gpu(),
    });
    Ok(config)
}

fn check(bytes: &[u8], mr_config_id: &Sha384Digest) -> Result<GuestConfig, Failure> {
    if GuestConfig::mr_config_id(bytes) != *mr_config_id {
        return Err(Code::ConfigDigestMismatch.alone());
    }
    let config = GuestConfig::parse(bytes).map_err(Code::ConfigMalformed.because())?;
    match config.role.0 {
        Role::Inference => Ok(config),
        Role::KeyService => Err(Code::ConfigRole.alone()),
    }
}

/// Magic, length in big endian, bytes. What follows on the disk is padding and not looked at.
fn read_disk(mut disk: impl Read) -> io::Result<Vec<u8>> {
    let malformed = |rule| io::Error::new(io::ErrorKind::InvalidData, rule);
    let mut magic = [0; MAGIC.len()];
    disk.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(malformed("the disk does not begin with CHRYCFG1"));
    }
    let mut length = [0; 4];
    disk.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > GuestConfig::MAX_BYTES {
        return Err(malformed("the configuration is longer than 64 KiB"));
    }
    let mut bytes = vec![0; length];
    disk.read_exact(&mut bytes)?;
    Ok(bytes)
}

const SERIAL: &str = "chrysalis-config";
const MAGIC: &[u8; 8] = b"CHRYCFG1";

/// Seconds since 1970 that were past when the image was built: its `SOURCE_DATE_EPOCH`, which verifiers know by the
/// release. A build without one takes the first second of 2026.
pub(crate) const FLOOR: u64 = match option_env!("SOURCE_DATE_EPOCH") {
    Some(text) => match u64::from_str_radix(text, 10) {
        Ok(seconds) => seconds,
        Err(_) => DEFAULT_FLOOR,
    },
    None => DEFAULT_FLOOR,
};
const DEFAULT_FLOOR: u64 = 1_767_225_600;

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(magic: &[u8], length: u32, bytes: &[u8]) -> Vec<u8> {
        [magic, &length.to_be_bytes(), bytes].concat()
    }

    #[test]
    fn a_disk_holds_exactly_its_length_and_padding() {
        let padded = disk(MAGIC, 2, b"{}\0\0\0\0");
        assert_eq!(read_disk(padded.as_slice()).unwrap(), b"{}");
        assert_eq!(read_disk(disk(MAGIC, 0, b"").as_slice()).unwrap(), b"");
    }

    #[test]
    fn other_disks_are_refused() {
        for bad in [
            disk(b"CHRYCFG2", 2, b"{}"),
            disk(MAGIC, 3, b"{}"),
            disk(MAGIC, 64 * 1024 + 1, &vec![b' '; 64 * 1024 + 1]),
            disk(MAGIC, u32::MAX, b"{}"),
            MAGIC.to_vec(),
            Vec::new(),
        ] {
            assert!(read_disk(bad.as_slice()).is_err());
        }
    }

    #[test]
    fn the_digest_is_compared_before_anything_is_parsed() {
        let text = b"not a configuration";
        let measured = GuestConfig::mr_config_id(text);
        assert_eq!(check(text, &Sha384Digest::ZERO).unwrap_err().code, Code::ConfigDigestMismatch);
        assert_eq!(check(text, &measured).unwrap_err().code, Code::ConfigMalformed);
    }
}
