// SPDX-License-Identifier: Apache-2.0
//! The launch record: what `prepare` composed and `launch` starts.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use types::{Document, MachineShape, Sha384Digest};
use vfio::PciAddress;

use crate::files;
use crate::numa::NumaPlace;

/// Facts of one launch, kept in the run directory as `launch.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LaunchRecord {
    pub(crate) schema: String,
    pub(crate) shape: MachineShape,
    pub(crate) image: PathBuf,
    pub(crate) model_disk: PathBuf,
    pub(crate) qemu: PathBuf,
    pub(crate) kvm: bool,
    pub(crate) simulated: bool,
    pub(crate) mr_config_id: Sha384Digest,
    pub(crate) quote_socket: PathBuf,
    pub(crate) cid: u32,
    /// The daemon takes this guest's vsock connections and passes them on.
    pub(crate) switched: bool,
    pub(crate) service: SocketAddr,
    pub(crate) listen: SocketAddrV4,
    pub(crate) guest_address: Ipv4Addr,
    pub(crate) guest_port: u16,
    /// PCI addresses of the host's GPUs that QEMU passes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) gpus: Vec<String>,
    /// PCI addresses of the host's NVSwitches that QEMU passes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) nvswitches: Vec<String>,
    /// Over iommufd; what the host had when it was last looked at, before the start.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) iommufd: bool,
    /// The host's node that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) numa: Option<NumaPlace>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl Document for LaunchRecord {
    const SCHEMA: &'static str = "chrysalis/launch/v1";
    const MAX_BYTES: usize = 64 * 1024;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl LaunchRecord {
    /// Everything of the host that QEMU passes on, as far as it can be read.
    pub(crate) fn passed_on(&self) -> Result<Vec<PciAddress>, vfio::AddressError> {
        self.gpus.iter().chain(&self.nvswitches).map(|address| address.parse()).collect()
    }

    pub(crate) fn load(run_dir: &Path) -> anyhow::Result<Self> {
        let path = run_dir.join(RECORD);
        let bytes = files::read_shared(&path, Self::MAX_BYTES)?;
        Self::from_canonical(&bytes)
            .with_context(|| format!("{} is not a launch record: run prepare again", path.display()))
    }

    pub(crate) fn store(&self, run_dir: &Path) -> anyhow::Result<()> {
        files::write_atomically(&run_dir.join(RECORD), &self.to_canonical()?)
    }
}

/// File names in a run directory.
pub(crate) const RECORD: &str = "launch.json";
pub(crate) const CONFIG_DISK: &str = "config.disk";
pub(crate) const MODEL_DISK: &str = "model.disk";
pub(crate) const TD_PARAMS: &str = "td-params.json";
pub(crate) const PID_FILE: &str = "agent.pid";
/// `uds-path` of a guest's vsock.
pub(crate) const VSOCK: &str = "vsock";
pub(crate) const STATE: &str = "state.json";
