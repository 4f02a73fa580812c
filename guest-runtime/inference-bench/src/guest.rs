// SPDX-License-Identifier: Apache-2.0
//! The attester of a guest without a machine, in a process of its own: the real one, over a simulated quote device.

use std::io::Read as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use attested_channel::BootFacts;
use attester::Keys;
use attester_protocol::{Configuration, ControlAnswer, ControlRequest, call};
use tdx_sim::{QuoteVersion, SimulatedPlatform, SimulatedTd, TdParams, TdReport};
use tee::{DeviceError, QuoteDevice};
use types::{Base64, Document as _, EventName, GpuEvidence, GuestConfig, Sha384Digest};

use crate::policy;

/// Name of the attester's socket.
pub(crate) const SOCKET: &str = "attester.sock";
/// What a quote takes on hardware, one after the other.
pub(crate) const QUOTE: Duration = Duration::from_millis(40);

/// Boots, prints a line when it serves, and ends with standard input.
pub(crate) fn attester(directory: &Path) -> anyhow::Result<()> {
    // As the guest's attester does: its memory is counted as it is there.
    linux_sys::memory::lock()?;
    let now = policy::now();
    let platform = Arc::new(SimulatedPlatform::generate(now)?);
    std::fs::write(directory.join(policy::COLLATERAL), platform.collateral(now, None)?.to_json())?;
    std::fs::write(directory.join(policy::ROOT), platform.root_der())?;
    std::fs::write(directory.join(policy::LAUNCHED), now.to_string())?;
    let config = policy::guest_config()?.to_canonical()?;
    let mr_config_id = GuestConfig::mr_config_id(&config);
    let registers = sample_release::registers(&policy::statement(now)?.predicate, &policy::shape()?, mr_config_id);
    let TdParams { attributes, xfam, .. } = TdParams::with_config(mr_config_id);
    let report = TdReport { registers, attributes, xfam, report_data: [0; 64] };
    let td = SimulatedTd::with(platform, report, QuoteVersion::V4, None, QUOTE);
    let _control = boot(td, &config, now, &directory.join(SOCKET))?;
    println!("serves");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Drives the attester through a whole boot, as init does. It lives as long as what is returned.
fn boot(td: SimulatedTd, config: &[u8], now: u64, socket: &Path) -> anyhow::Result<UnixStream> {
    let keys = Keys::generate().map_err(|_| anyhow::anyhow!("no randomness"))?;
    let (spki_sha256, instance_key) = (keys.spki_sha256(), keys.instance_key());
    let (mut control, theirs) = UnixStream::pair()?;
    let listener = UnixListener::bind(socket)?;
    std::thread::spawn(move || attester::serve(Device(td), keys, theirs, listener));
    let (time, gpu, model) = (policy::attested_time(now)?, GpuEvidence::NONE, policy::model()?);
    let guest_config = Base64::new(config.to_vec()).ok_or_else(|| anyhow::anyhow!("configuration"))?;
    let mut ask = |request: ControlRequest| -> anyhow::Result<()> {
        call::<_, _, ControlAnswer>(&mut control, 1, &request).map(drop).map_err(|error| anyhow::anyhow!("{error}"))
    };
    ask(ControlRequest::Configure(Box::new(Configuration {
        guest_config,
        time: time.clone(),
        gpu: gpu.clone(),
        firmware_log: None,
    })))?;
    let facts = BootFacts {
        config: GuestConfig::mr_config_id(config),
        time: &time,
        gpu: &gpu,
        model: &model,
        spki_sha256,
        instance_key,
    };
    for name in EventName::ALL {
        if name == EventName::KeysClosed {
            ask(ControlRequest::Seal {})?;
        }
        ask(ControlRequest::Extend { event: facts.event(name)? })?;
    }
    Ok(control)
}

struct Device(SimulatedTd);

impl QuoteDevice for Device {
    fn mr_config_id(&mut self) -> Result<Sha384Digest, DeviceError> {
        Ok(self.0.mr_config_id())
    }

    fn extend_rtmr3(&mut self, digest: &Sha384Digest) -> Result<(), DeviceError> {
        self.0.extend(3, digest).map_err(|_| DeviceError::Answer("extend"))
    }

    fn quote(&mut self, report_data: &[u8; 64]) -> Result<Vec<u8>, DeviceError> {
        self.0.quote(*report_data).map_err(|_| DeviceError::Answer("quote"))
    }
}
