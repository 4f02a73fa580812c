// SPDX-License-Identifier: Apache-2.0
//! A maker of GPUs for tests: certificate authorities, devices, manifests and OCSP answers of its own.
//!
//! Manifests are written in canonical form by hand, so that their signatures do not depend on the code under test.

mod ocsp;
mod rim;

use std::sync::{
    LazyLock,
    atomic::{AtomicI32, Ordering},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair},
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, PublicKeyData as _, SignatureAlgorithm,
};
use types::Sha256Digest;

pub use ocsp::{OcspStatus, answer, delegated_answer};
pub use rim::{RimSpec, sign_rim};

/// Certificates end when this year begins; to be set before anything is made.
pub static LAST_YEAR: AtomicI32 = AtomicI32::new(2030);

/// 2026-01-01.
pub const NOW: u64 = 1_767_225_600;
pub const NONCE: [u8; 32] = [7; 32];
pub const FWID: [u8; 48] = [0x42; 48];

/// A certificate with its key.
pub struct Authority {
    pub params: CertificateParams,
    pub key: KeyPair,
    pub der: Vec<u8>,
}

/// Authorities of devices and manifests, from the root down.
pub struct Maker {
    pub device: Vec<Authority>,
    pub rim: Vec<Authority>,
}

pub static MAKER: LazyLock<Maker> = LazyLock::new(|| Maker {
    device: authorities(&["Test Device Root", "Test GH100 Identity", "Test Provisioner"]),
    rim: authorities(&["Test RIM Root", "Test GH100 Values", "Test L3"]),
});

impl Maker {
    pub fn anchors(&self) -> gpu_verify::GpuAnchors {
        let root = |chain: &[Authority]| Sha256Digest::of(&chain[0].der);
        gpu_verify::GpuAnchors::custom(root(&self.device), root(&self.rim))
    }
}

/// A device as it should be; tests change one thing.
#[derive(Clone)]
pub struct Device {
    /// `GH100` or `LS_10`.
    pub chip: &'static str,
    pub pdi: [u8; 8],
    pub nonce: [u8; 32],
    /// Value of index i (from 1) is `measurement(i)`, unless it stands here.
    pub changed: Vec<(u8, [u8; 48])>,
    pub blocks: u8,
    pub opaque: Vec<(u16, Vec<u8>)>,
    /// What the leaf says of the firmware; `None` for no extension.
    pub tcb: Option<Tcb>,
}

/// Which extension the leaf has.
#[derive(Clone)]
pub enum Tcb {
    /// `CompositeDeviceID`, as on Hopper.
    Composite([u8; 48]),
    /// `DiceTcbInfo` with flags, as on Blackwell.
    Dice([u8; 48], u8),
}

/// Report and chain in PEM.
#[derive(Clone)]
pub struct Made {
    pub report: Vec<u8>,
    pub chain: Vec<u8>,
}

impl Device {
    pub fn gpu(pdi: [u8; 8]) -> Self {
        Self {
            chip: "GH100",
            pdi,
            nonce: NONCE,
            changed: Vec::new(),
            blocks: 64,
            opaque: vec![
                (3, b"550.10\0".to_vec()),
                (6, vec![0, 0x5e, 0, 0x96, 1, 0, 0, 0]),
                (11, vec![0x55]),
                (15, b"882\0".to_vec()),
                (17, b"1010\0".to_vec()),
                (18, b"0200\0".to_vec()),
                (20, FWID.to_vec()),
                (34, vec![1, 0]),
                (36, vec![1, 0]),
            ],
            tcb: Some(Tcb::Composite(FWID)),
        }
    }

    pub fn switch(pdi: [u8; 8], gpus: &[[u8; 8]]) -> Self {
        let mut ports = gpus.concat();
        ports.extend([0xff; 64]);
        Self {
            chip: "LS_10",
            blocks: 31,
            opaque: vec![(6, b"96.10.55.00.01".to_vec()), (22, pdi.to_vec()), (25, vec![1, 0]), (26, ports)],
            ..Self::gpu(pdi)
        }
    }

    pub fn set(&mut self, kind: u16, value: &[u8]) {
        self.remove(kind);
        self.opaque.push((kind, value.to_vec()));
    }

    pub fn remove(&mut self, kind: u16) {
        self.opaque.retain(|(found, _)| *found != kind);
    }

    pub fn make(&self) -> Made {
        self.make_under(&MAKER.device, |_, _| {})
    }

    /// With a change to the parameters of the certificate at a place: 0 for the leaf, 1 for the boot ROM.
    pub fn make_under(&self, authorities: &[Authority], change: impl Fn(usize, &mut CertificateParams)) -> Made {
        let issuer = authorities.last().unwrap();
        let mut params = ca(&format!("{} A01 GSP BROM", self.chip));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let kind = if self.chip == "LS_10" { "50" } else { "41" };
        let serial = format!("{kind}{}", hex::encode_upper(self.pdi));
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), serial);
        change(1, &mut params);
        let boot_rom = issue(params, issuer, &PKCS_ECDSA_P384_SHA384);
        let mut params = leaf(&format!("{} A01 GSP FMC LF", self.chip));
        params.custom_extensions.extend(self.tcb.as_ref().map(Tcb::extension));
        change(0, &mut params);
        let own = issue(params, &boot_rom, &PKCS_ECDSA_P384_SHA384);
        let mut chain = pem(&own.der) + &pem(&boot_rom.der);
        authorities.iter().rev().for_each(|authority| chain += &pem(&authority.der));
        let unsigned = self.unsigned();
        let report = [unsigned.clone(), sign(&own.key, &unsigned)].concat();
        Made { report, chain: chain.into_bytes() }
    }

    fn unsigned(&self) -> Vec<u8> {
        let mut record = Vec::new();
        for index in 1..=self.blocks {
            let changed = self.changed.iter().find(|(found, _)| *found == index);
            record.extend([index, 1, 51, 0, 1, 48, 0]);
            record.extend(changed.map_or_else(|| measurement(index), |(_, value)| *value));
        }
        let mut opaque = Vec::new();
        for (kind, value) in &self.opaque {
            opaque.extend(kind.to_le_bytes());
            opaque.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
            opaque.extend(value);
        }
        let mut report = vec![0x11, 0xe0, 1, 0xff];
        report.extend(self.nonce);
        report.extend([0, 0x11, 0x60, 0, 0, self.blocks]);
        report.extend(&u32::try_from(record.len()).unwrap().to_le_bytes()[..3]);
        report.extend(record);
        report.extend([9; 32]);
        report.extend(u16::try_from(opaque.len()).unwrap().to_le_bytes());
        report.extend(opaque);
        report
    }
}

impl Tcb {
    fn extension(&self) -> CustomExtension {
        let fwid = |digest: &[u8; 48]| tlv(0x30, &[SHA384_OID.to_vec(), tlv(0x04, digest)].concat());
        match self {
            Self::Composite(digest) => {
                let key = MAKER.device[0].key.subject_public_key_info();
                let content = [tlv(0x02, &[1]), key, fwid(digest)].concat();
                CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], tlv(0x30, &content))
            }
            Self::Dice(digest, flags) => {
                let fwids = tlv(0xa6, &[fwid(digest), fwid(&[0; 48])].concat());
                let content = [tlv(0x80, b"TEST"), fwids, tlv(0x87, &[0, *flags, 0, 0, 1])].concat();
                CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1, 1], tlv(0x30, &content))
            }
        }
    }
}

/// The right value at an SPDM index.
pub fn measurement(index: u8) -> [u8; 48] {
    [index; 48]
}

pub fn ca(name: &str) -> CertificateParams {
    let mut params = leaf(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub fn leaf(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(LAST_YEAR.load(Ordering::Relaxed), 1, 1);
    params
}

pub fn issue(params: CertificateParams, issuer: &Authority, algorithm: &'static SignatureAlgorithm) -> Authority {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let by = Issuer::from_params(&issuer.params, &issuer.key);
    let der = params.signed_by(&key, &by).unwrap().der().to_vec();
    Authority { params, key, der }
}

/// A root and the authorities below it.
pub fn authorities(names: &[&str]) -> Vec<Authority> {
    let params = ca(names[0]);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    let mut chain = vec![Authority { params, key, der }];
    for name in &names[1..] {
        let next = issue(ca(name), chain.last().unwrap(), &PKCS_ECDSA_P384_SHA384);
        chain.push(next);
    }
    chain
}

pub fn sign(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &key.serialize_der()).unwrap();
    pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
}

pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let mut out = vec![tag];
    match len {
        0..128 => out.push(u8::try_from(len).unwrap()),
        128..256 => out.extend([0x81, u8::try_from(len).unwrap()]),
        _ => {
            out.push(0x82);
            out.extend(u16::try_from(len).unwrap().to_be_bytes());
        }
    }
    out.extend(content);
    out
}

pub fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// OBJECT IDENTIFIER 2.16.840.1.101.3.4.2.2.
pub const SHA384_OID: &[u8] = &[0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
