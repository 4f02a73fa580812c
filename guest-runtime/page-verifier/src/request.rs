// SPDX-License-Identifier: Apache-2.0
//! The request. Documents whose bytes are hashed or signed stand in it as text, as they were received.

use appraise::Policy;
use attested_channel::Moment;
use gpu_verify::{DriverState, GpuPolicy};
use serde::{Deserialize, Serialize};
use tdx_verify::PlatformPolicy;
use types::{Base64, Hex32, Refusal, Sha256Digest};

use crate::MAX_REQUEST;

/// What is to be decided, and when. Unknown and repeated fields are refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`Request::SCHEMA`].
    pub schema: String,
    /// Time of the decision, seconds since 1970. The caller answers for it.
    pub at: u64,
    /// What is judged.
    pub subject: Subject,
}

/// What is judged.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A quote, its platform and the TD's own fields; neither registers nor REPORTDATA.
    Quote(QuoteRequest),
    /// GPUs, without the guest that they belong to.
    Gpus(GpusRequest),
    /// A release bundle.
    Release(ReleaseRequest),
    /// A guest: everything.
    Guest(Box<GuestRequest>),
}

/// A quote.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuoteRequest {
    /// The quote, without padding.
    pub quote: Base64<{ types::evidence::MAX_QUOTE }>,
    /// Collateral files (JSON), one for each kind of platform.
    pub collateral: Vec<String>,
    /// Which platforms are accepted.
    #[serde(default)]
    pub policy: PlatformPolicy,
}

/// GPUs and switches.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpusRequest {
    /// GPUs.
    pub gpus: Vec<DeviceRequest>,
    /// NVSwitches.
    #[serde(default)]
    pub switches: Vec<DeviceRequest>,
    /// Reference manifests (XML), exactly those that are needed.
    pub rims: Vec<String>,
    /// OCSP answers (DER).
    #[serde(default)]
    pub ocsp: Vec<Base64<{ gpu_verify::MAX_ANSWER_LEN }>>,
    /// The nonce that the devices were asked with.
    #[serde(default)]
    pub nonce: Option<Hex32>,
    /// What the guest states of its driver.
    #[serde(default)]
    pub driver_state: Option<DriverState>,
    /// Which GPUs are accepted.
    pub policy: GpuPolicy,
}

/// One device.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRequest {
    /// SPDM request and response.
    pub report: Base64<{ gpu_verify::MAX_REPORT_LEN }>,
    /// Certificates in PEM, from the leaf to the root.
    pub chain: String,
}

/// A release bundle.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// The bundle, as published.
    pub bundle: String,
    /// The keys that releases are signed, logged and witnessed by.
    pub trust: String,
}

/// A guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestRequest {
    /// The evidence document.
    pub evidence: String,
    /// What it must be bound to.
    pub binding: BindingRequest,
    /// Collateral files (JSON).
    pub collateral: Vec<String>,
    /// What is demanded.
    pub policy: Policy,
    /// The keys that releases are signed, logged and witnessed by.
    pub trust: String,
    /// Bundles of acceptable releases; one that is refused refuses the request.
    pub releases: Vec<String>,
    /// Reference manifests of GPUs (XML).
    #[serde(default)]
    pub rims: Vec<String>,
    /// OCSP answers about GPUs (DER).
    #[serde(default)]
    pub ocsp: Vec<Base64<{ gpu_verify::MAX_ANSWER_LEN }>>,
}

/// What evidence must be bound to: [`appraise::Binding`] as data.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BindingRequest {
    /// A connection to a serving guest.
    Connection {
        /// The connection proof, as the guest sent it.
        proof: String,
        /// The caller's own challenge.
        challenge: Hex32,
        /// The exporter of the caller's own connection.
        exporter: Hex32,
        /// SHA-256 of the SPKI that the connection's handshake was signed with.
        spki_sha256: Sha256Digest,
    },
    /// A key release.
    KeyRelease {
        /// The challenge.
        challenge: Hex32,
        /// The connection's exporter.
        exporter: Hex32,
    },
    /// None: the verdict then says `bound: false`, and the evidence may be a copy.
    Document {
        /// How far the boot is expected to have come.
        moment: MomentRequest,
    },
}

/// [`attested_channel::Moment`] as data.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MomentRequest {
    /// Before any key.
    KeyRelease,
    /// The guest serves.
    Serving,
}

impl From<MomentRequest> for Moment {
    fn from(moment: MomentRequest) -> Self {
        match moment {
            MomentRequest::KeyRelease => Self::KeyRelease,
            MomentRequest::Serving => Self::Serving,
        }
    }
}

impl Request {
    /// Value of the field `schema`.
    pub const SCHEMA: &str = "chrysalis/verify-request/v1";

    /// Reads a request.
    ///
    /// # Errors
    /// The one reason why it is none.
    pub(crate) fn from_json(bytes: &[u8]) -> Result<Self, Refusal> {
        let refuse = |detail: String| {
            Err(Refusal::new("request_malformed", "request", detail, "send a request of the documented form"))
        };
        if bytes.len() > MAX_REQUEST {
            return refuse(format!("a request has at most {MAX_REQUEST} bytes"));
        }
        match serde_json::from_slice::<Self>(bytes) {
            Ok(request) if request.schema == Self::SCHEMA => Ok(request),
            Ok(_) => refuse(format!("the field schema must be \"{}\"", Self::SCHEMA)),
            Err(error) => refuse(error.to_string()),
        }
    }
}
