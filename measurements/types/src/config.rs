// SPDX-License-Identifier: Apache-2.0
//! The guest's configuration. The host chooses it; SHA-384 of its bytes stands in MRCONFIGID.
//!
//! Equality with MRCONFIGID only proves *which* configuration a measured init runs with. So each field says
//! in its type who judges it, and no field can weaken confidentiality, whatever its value.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{Document, MachineShape, ModelId, Role, Sha256Digest, Sha384Digest};

/// Must have one value, fixed by the software: a verifier compares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fixed<T>(pub T);

/// Judged by the verifier's policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Policy<T>(pub T);

/// May have any well-formed value: the provider's own affair.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Free<T>(pub T);

/// The configuration of a guest, at most 64 KiB of canonical JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// `chrysalis/guest-config/v1`.
    pub schema: String,
    /// What the guest is for. A release names the role of its image.
    pub role: Fixed<Role>,
    /// The machine. Verifiers compute the expected registers from it, so a lie shows in RTMR0.
    pub shape: Policy<MachineShape>,
    /// The model to ask a key for, and the only one that will be served.
    pub model: Policy<ModelId>,
    /// Where keys come from.
    pub service: ServiceLink,
    /// The guest's network.
    pub network: Network,
    /// How the engine is run.
    pub engine: EngineSettings,
    /// Number of GPUs, 0 to 16; left out where it is 0. The guest halts with any other number of devices, and the evidence has a
    /// report of each.
    #[serde(skip_serializing_if = "no_gpus", default = "zero_gpus")]
    pub gpus: Free<u8>,
}

/// The attestation service as the guest sees it: a vsock port of the host that forwards bytes, and the key
/// that must answer behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceLink {
    /// Port on CID 2.
    pub vsock_port: Free<u32>,
    /// SHA-256 of the service's DER `SubjectPublicKeyInfo` (an Ed25519 key). Policies and clients see it.
    pub spki_sha256: Policy<Sha256Digest>,
}

/// Static IPv4, no gateway, no DNS, no DHCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Address of the only interface.
    pub address: Free<Ipv4Addr>,
    /// Length of its prefix, 8 to 30.
    pub prefix: Free<u8>,
    /// TCP port of the attested API.
    pub port: Free<u16>,
    /// Whose a connection is; left out where it is the peer's. Places are shared by these addresses, nothing else is: a
    /// host that lies here makes the guest serve worse, which it can anyway.
    #[serde(skip_serializing_if = "is_peers", default)]
    pub client_address: Free<ClientAddress>,
}

/// How a guest learns the address of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAddress {
    /// It is that of the connection.
    #[default]
    Connection,
    /// Each connection begins with it: a header of the PROXY protocol, version 2.
    ProxyProtocol,
}

/// Limits of the engine: they change speed and capacity, never who can read what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSettings {
    /// Context window in tokens, 64 to 1048576.
    pub context_tokens: Free<u32>,
    /// Threads that decode, 1 to 512.
    pub threads_decode: Free<u16>,
    /// Threads that read the prompt, 1 to 512.
    pub threads_prefill: Free<u16>,
    /// Tokens that are computed at once, 1 to 512. Left out, as many as leave an answer the same in any company; with more,
    /// prompts are read faster and sums are rounded otherwise beside other requests. GPUs compute 512 in any case.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prompt_rows: Option<Free<u16>>,
}

/// Why a configuration that is well-formed JSON was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not canonical, unknown field, too large, ….
    #[error(transparent)]
    Document(#[from] crate::CanonicalError),
    /// A value is outside of its range.
    #[error("{field} must be {rule}")]
    Range {
        /// Path of the field.
        field: &'static str,
        /// What is allowed.
        rule: &'static str,
    },
}

impl GuestConfig {
    /// Reads and checks a configuration from exactly its bytes.
    ///
    /// # Errors
    /// [`ConfigError`] names the field and the rule.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let config = Self::from_canonical(bytes)?;
        config.check()?;
        Ok(config)
    }

    /// The value of MRCONFIGID for a configuration with these bytes.
    #[must_use]
    pub fn mr_config_id(bytes: &[u8]) -> Sha384Digest {
        Sha384Digest::of(bytes)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let range = |ok: bool, field, rule| if ok { Ok(()) } else { Err(ConfigError::Range { field, rule }) };
        range((8..=30).contains(&self.network.prefix.0), "network.prefix", "8 to 30")?;
        range(self.network.port.0 != 0, "network.port", "1 to 65535")?;
        let address = self.network.address.0;
        range(
            !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && !address.is_broadcast(),
            "network.address",
            "a unicast address that is not loopback",
        )?;
        range((64..=1 << 20).contains(&self.engine.context_tokens.0), "engine.context_tokens", "64 to 1048576")?;
        range((1..=512).contains(&self.engine.threads_decode.0), "engine.threads_decode", "1 to 512")?;
        range((1..=512).contains(&self.engine.threads_prefill.0), "engine.threads_prefill", "1 to 512")?;
        let rows = self.engine.prompt_rows.as_ref().map_or(1, |rows| rows.0);
        range((1..=512).contains(&rows), "engine.prompt_rows", "1 to 512")?;
        range(self.gpus.0 <= MAX_GPUS, "gpus", "0 to 16")
    }
}

/// Most GPUs of a guest.
pub const MAX_GPUS: u8 = 16;

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
const fn no_gpus(gpus: &Free<u8>) -> bool {
    gpus.0 == 0
}

const fn zero_gpus() -> Free<u8> {
    Free(0)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
const fn is_peers(client_address: &Free<ClientAddress>) -> bool {
    matches!(client_address.0, ClientAddress::Connection)
}

impl Document for GuestConfig {
    const SCHEMA: &'static str = "chrysalis/guest-config/v1";
    const MAX_BYTES: usize = 64 * 1024;

    fn schema(&self) -> &str {
        &self.schema
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Blake3Digest, Device, shape::ShapeFacts};

    fn sample() -> GuestConfig {
        GuestConfig {
            schema: GuestConfig::SCHEMA.into(),
            role: Fixed(Role::Inference),
            shape: Policy(
                MachineShape::new(ShapeFacts {
                    vcpus: 2,
                    memory_mib: 1024,
                    physical_bits: 46,
                    qemu: "7.2".parse().unwrap(),
                    devices: vec![Device::ConfigDisk, Device::Vsock],
                })
                .unwrap(),
            ),
            model: Policy(ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap()),
            service: ServiceLink { vsock_port: Free(7000), spki_sha256: Policy(Sha256Digest::of(b"k")) },
            network: Network {
                address: Free(Ipv4Addr::new(10, 0, 2, 15)),
                prefix: Free(24),
                port: Free(8443),
                client_address: Free::default(),
            },
            engine: EngineSettings {
                context_tokens: Free(512),
                threads_decode: Free(1),
                threads_prefill: Free(2),
                prompt_rows: None,
            },
            gpus: Free(0),
        }
    }

    #[test]
    fn round_trip_and_ranges() {
        let bytes = sample().to_canonical().unwrap();
        assert_eq!(GuestConfig::parse(&bytes).unwrap(), sample());
        let mut bad = sample();
        bad.network.prefix.0 = 31;
        let error = GuestConfig::parse(&bad.to_canonical().unwrap()).unwrap_err();
        assert!(matches!(error, ConfigError::Range { field: "network.prefix", .. }));
    }

    #[test]
    fn the_number_of_gpus_has_one_form_and_a_limit() {
        let none = String::from_utf8(sample().to_canonical().unwrap()).unwrap();
        assert!(!none.contains("gpus"));
        let mut config = sample();
        config.gpus.0 = MAX_GPUS;
        assert_eq!(GuestConfig::parse(&config.to_canonical().unwrap()).unwrap(), config);
        config.gpus.0 = MAX_GPUS + 1;
        let error = GuestConfig::parse(&config.to_canonical().unwrap()).unwrap_err();
        assert!(matches!(error, ConfigError::Range { field: "gpus", .. }));
        // Zero is written by leaving it out, so that one configuration has one digest.
        let written = none.replacen(",\"model\":", ",\"gpus\":0,\"model\":", 1);
        assert_ne!(none, written);
        assert!(matches!(GuestConfig::parse(written.as_bytes()), Err(ConfigError::Document(_))));
    }

    #[test]
    fn a_client_address_of_the_connection_has_one_form() {
        // As it was written before there was such a field.
        let earlier = String::from_utf8(sample().to_canonical().unwrap()).unwrap();
        assert!(earlier.contains(r#""network":{"address":"10.0.2.15","port":8443,"prefix":24}"#), "{earlier}");
        let parsed = GuestConfig::parse(earlier.as_bytes()).unwrap();
        assert_eq!(parsed.network.client_address.0, ClientAddress::Connection);
        assert_eq!(parsed.to_canonical().unwrap(), earlier.as_bytes());
        let with = |value: &str| {
            earlier.replacen(",\"port\":8443", &format!(",\"client_address\":\"{value}\",\"port\":8443"), 1)
        };
        let announced = GuestConfig::parse(with("proxy-protocol").as_bytes()).unwrap();
        assert_eq!(announced.network.client_address.0, ClientAddress::ProxyProtocol);
        assert_eq!(announced.to_canonical().unwrap(), with("proxy-protocol").as_bytes());
        for refused in ["connection", "proxy_protocol", "proxy-protocol-v1", ""] {
            assert!(GuestConfig::parse(with(refused).as_bytes()).is_err(), "{refused}");
        }
    }

    #[test]
    fn rows_may_be_left_out_and_have_limits() {
        let without = String::from_utf8(sample().to_canonical().unwrap()).unwrap();
        assert!(!without.contains("prompt_rows"));
        for (rows, good) in [(0, false), (1, true), (512, true), (513, false)] {
            let mut config = sample();
            config.engine.prompt_rows = Some(Free(rows));
            match GuestConfig::parse(&config.to_canonical().unwrap()) {
                Ok(parsed) => assert!(good && parsed == config, "{rows}"),
                Err(error) => {
                    assert!(!good && matches!(error, ConfigError::Range { field: "engine.prompt_rows", .. }), "{rows}");
                }
            }
        }
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let text = String::from_utf8(sample().to_canonical().unwrap()).unwrap();
        let extended = text.replacen("{\"engine\":{", "{\"engine\":{\"a\":1,", 1);
        assert_ne!(text, extended);
        assert!(GuestConfig::parse(extended.as_bytes()).is_err());
    }
}
