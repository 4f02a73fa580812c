// SPDX-License-Identifier: Apache-2.0
//! What manifests and OCSP answers say against devices, for a guest that got them from a host which may leave out, exchange and
//! make up anything.
//!
//! A file counts where NVIDIA signed it; every other one is as if it were not there, since the host could as well have given
//! none. So nothing that a host gives can make a guest take a device that it would refuse without it: it can only speak
//! against one.

use types::{Refusal, Sha256Digest};

use crate::{
    DeviceEvidence, GpuAnchors, GpuAppraisal, GpuPolicy, MAX_ANSWERS, MAX_RIMS,
    certificate::{Cert, parse_pem},
    device::DeviceFacts,
    gpu,
    library::versions,
    nvswitch,
    policy::Requirement,
    rim::{Rim, RimFault, RimRefused},
    spdm::SpdmReport,
};

/// Files from a host, and the devices that they may be about.
#[derive(Debug, Clone, Copy)]
pub struct Statements<'a> {
    /// GPUs. Their reports, certificates and nonce are somebody else's to check, before.
    pub gpus: &'a [DeviceEvidence<'a>],
    /// NVSwitches.
    pub switches: &'a [DeviceEvidence<'a>],
    /// Manifests; of more than [`MAX_RIMS`] the rest is left out.
    pub manifests: &'a [Vec<u8>],
    /// OCSP answers about certificates of devices and manifests; of more than [`MAX_ANSWERS`] the rest is left out.
    pub ocsp: &'a [Vec<u8>],
    /// Whose signatures count.
    pub anchors: &'a GpuAnchors,
    /// Seconds since 1970, from a source that the host is not.
    pub now: u64,
}

/// What they say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objections {
    /// A measurement differs from a manifest's.
    pub mismatches: Vec<Refusal>,
    /// A certificate of a device or of a manifest is revoked, or its own responder does not know it.
    pub revocations: Vec<Refusal>,
    /// Whether every device was compared with all of its manifests. Without it, driver and firmware may be any.
    pub compared: bool,
    /// Whether a good answer is there about every certificate of devices and of the manifests that count.
    pub revocation_checked: bool,
}

impl Statements<'_> {
    /// What NVIDIA says against the devices. That it says nothing is no verdict: [`GpuAppraisal::appraise`] gives those.
    #[must_use]
    pub fn objections(&self) -> Objections {
        let ocsp = self.ocsp.get(..self.ocsp.len().min(MAX_ANSWERS)).unwrap_or_default();
        let (mut rims, mut revocations) = (Vec::new(), Vec::new());
        for bytes in self.manifests.iter().take(MAX_RIMS) {
            match Rim::verify(bytes, self.anchors, ocsp, Requirement::Optional, self.now) {
                Ok(rim) => rims.push(Ok(rim)),
                // Good but for what its own issuer says of it.
                Err(refused) if self.is_wanted(&refused) && refused.faults.iter().all(is_said_by_issuer) => {
                    revocations.extend(refused.refusals());
                }
                Err(_) => {}
            }
        }
        let policy = GpuPolicy::files_only();
        let verdict = GpuAppraisal {
            gpus: self.gpus,
            switches: self.switches,
            rims: &rims,
            ocsp,
            nonce: None,
            driver_state: None,
            policy: &policy,
            anchors: self.anchors,
            now: self.now,
        }
        .appraise();
        let passed = verdict.checks().iter().filter(|check| check.passed && check.code == MISMATCH).count();
        // Driver and VBIOS of each GPU, firmware of each switch.
        let wanted = self.gpus.len().saturating_mul(2).saturating_add(self.switches.len());
        let revocation_checked = verdict.revocation == "checked";
        let mut mismatches = Vec::new();
        for reason in verdict.reasons() {
            match reason.code.as_str() {
                MISMATCH | "rim_conflict" => mismatches.push(reason),
                "gpu_revoked" | "gpu_revocation_unknown" => revocations.push(reason),
                _ => {}
            }
        }
        Objections { mismatches, revocations, compared: wanted > 0 && passed == wanted, revocation_checked }
    }

    /// Whether a manifest says that it is about a version which a device has: others are nobody's concern.
    fn is_wanted(&self, refused: &RimRefused) -> bool {
        let mut devices = self.gpus.iter().chain(self.switches);
        let claims = refused.claims.as_ref();
        claims.is_some_and(|claims| devices.any(|device| versions(device.report).contains(&claims.version)))
    }

    /// Names under which NVIDIA's service has the manifests that the reports ask for, each once. What a report names, its device
    /// says: it need not be a name that any service knows.
    #[must_use]
    pub fn manifest_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for device in self.gpus.iter().chain(self.switches) {
            let Ok(report) = SpdmReport::parse(device.report) else { continue };
            if let Ok(fields) = report.opaque.gpu() {
                let architecture = parse_pem(device.chain).map(|chain| DeviceFacts::read(&chain).architecture);
                let Ok(architecture) = architecture else { continue };
                names.extend([gpu::driver_rim_id(architecture, &fields), gpu::vbios_rim_id(&fields)]);
            } else if let Ok(fields) = report.opaque.switch() {
                names.push(nvswitch::rim_id(&fields.vbios_version));
            }
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// SHA-256 of the certificates (DER) that somebody issued and can revoke, of devices and of the manifests here, each once:
    /// neither roots nor what a device makes for itself.
    #[must_use]
    pub fn revocable(&self) -> Vec<Sha256Digest> {
        let mut digests = Vec::new();
        for device in self.gpus.iter().chain(self.switches) {
            let chain = parse_pem(device.chain).unwrap_or_default();
            digests.extend(issued(&chain).skip(1));
        }
        for bytes in self.manifests.iter().take(MAX_RIMS) {
            digests.extend(issued(&Rim::claimed_certificates(bytes)));
        }
        digests.sort_unstable();
        digests.dedup();
        digests
    }
}

fn issued(chain: &[Cert]) -> impl Iterator<Item = Sha256Digest> {
    chain.iter().take(chain.len().saturating_sub(1)).map(Cert::digest)
}

/// With [`Requirement::Optional`] an answer that is not there is no fault: what is unknown then, an answer said.
fn is_said_by_issuer(fault: &RimFault) -> bool {
    matches!(fault, RimFault::Revocation { code: "rim_revoked" | "rim_revocation_unknown", .. })
}

const MISMATCH: &str = "measurement_mismatch";
