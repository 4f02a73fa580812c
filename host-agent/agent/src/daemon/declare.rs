// SPDX-License-Identifier: Apache-2.0
//! From the configuration to what each guest shall be: releases verified, digests taken, ports and GPUs looked at.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fleet::{Declared, GuestName};
use model_cache::Source;
use serde::Serialize;
use types::{Blake3Digest, QemuVersion, Refusal, Sha256Digest, canonical};

use super::config::{Config, GuestSection};
use super::paths::RunPlan;
use super::release::CheckedRelease;
use super::{gpus, now_unix};
use crate::account::Account;
use crate::cli::{AcceleratorArg, PrepareArgs, TeeArg};
use crate::numa::NumaPlace;
use crate::prepare;

/// What one guest shall be.
#[derive(Debug, Clone)]
pub(crate) struct Declaration {
    pub(crate) declared: Declared,
    pub(crate) listen: SocketAddrV4,
    pub(crate) release: String,
    pub(crate) model: String,
    /// Without reasons against it: how to compose it.
    pub(crate) plan: Option<Arc<Plan>>,
}

/// How a generation is composed.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) run: RunPlan,
    pub(crate) release: Arc<CheckedRelease>,
    pub(crate) identity: Blake3Digest,
    pub(crate) sources: Vec<Source>,
    /// Whom it runs as.
    pub(crate) account: Account,
    /// Without run directory, model, image, port and context identifier.
    pub(crate) arguments: PrepareArgs,
}

/// What a running front holds, so that its port is not found to be taken.
pub(crate) type Fronts = BTreeMap<GuestName, SocketAddrV4>;

/// Declares all guests. Hashes the files of every release that is named.
pub(crate) fn declare(config: &Config, fronts: &Fronts) -> BTreeMap<GuestName, Declaration> {
    let mut releases = BTreeMap::new();
    for guest in config.guests.values() {
        if let (false, Some(section)) = (releases.contains_key(&guest.release), config.releases.get(&guest.release)) {
            let checked = CheckedRelease::check(&guest.release, section, config.simulate.is_some(), now_unix());
            releases.insert(guest.release.clone(), checked.map(Arc::new));
        }
    }
    let qemu = prepare::qemu_version(&config.hardware.qemu).map_err(|error| {
        let fix = "install QEMU, or name another in hardware.qemu";
        vec![Refusal::new("qemu_missing", "hardware.qemu", format!("{error:#}"), fix)]
    });
    let mut declarations = BTreeMap::new();
    for (name, guest) in &config.guests {
        let release = releases.get(&guest.release).cloned().unwrap_or_else(|| Err(Vec::new()));
        let held = fronts.get(name).copied();
        let plan = plan(config, name, guest, release, qemu.clone(), held);
        let (spec, plan) = match plan {
            Ok(plan) => (Ok(plan.run.spec), Some(Arc::new(plan))),
            Err(reasons) => (Err(reasons), None),
        };
        let drain_ms = guest.drain_deadline_s.saturating_mul(1000);
        let declared = Declared { spec, strategy: guest.strategy(), drain_ms };
        let (listen, release, model) = (guest.listen, guest.release.clone(), guest.model.clone());
        declarations.insert(name.clone(), Declaration { declared, listen, release, model, plan });
    }
    declarations
}

fn plan(
    config: &Config,
    name: &GuestName,
    guest: &GuestSection,
    release: Result<Arc<CheckedRelease>, Vec<Refusal>>,
    qemu: Result<QemuVersion, Vec<Refusal>>,
    held: Option<SocketAddrV4>,
) -> Result<Plan, Vec<Refusal>> {
    let mut reasons = Vec::new();
    reasons.extend(port_taken(name, guest, held));
    reasons.extend(gpus::check(config, name, guest));
    let field = format!("guests.{name}.numa_node");
    let node = guest.numa_node.map(|node| NumaPlace::find(&config.hardware.root, node, &field));
    reasons.extend(node.and_then(Result::err).map(|reason| *reason));
    let sources = sources(config, guest).unwrap_or_else(|reason| {
        reasons.push(reason);
        Vec::new()
    });
    let release = release.map_err(|more| reasons.extend(more)).ok();
    let qemu = qemu.map_err(|more| reasons.extend(more)).ok();
    let account = config.account().map_err(|reason| reasons.push(reason)).ok();
    let (Some(release), Some(qemu), Some(account), true) = (release, qemu, account, reasons.is_empty()) else {
        return Err(reasons);
    };
    let missing = |field: &str| {
        vec![Refusal::new("config_value", &format!("guests.{name}.{field}"), "it is not declared", "add the section")]
    };
    let model = config.models.get(&guest.model).ok_or_else(|| missing("model"))?;
    let service = config.services.get(&guest.service).ok_or_else(|| missing("service"))?;
    let arguments = PrepareArgs {
        run_dir: PathBuf::new(),
        image: PathBuf::new(),
        model_pack: None,
        model_disk: None,
        model: model.model.0.clone(),
        service: service.address,
        service_spki: service.spki_sha256,
        listen: SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0),
        vcpus: guest.vcpus,
        memory_mib: guest.memory_mib,
        gpus: u8::try_from(guest.gpus.len()).unwrap_or(u8::MAX),
        gpu: guest.gpus.iter().map(|gpu| gpu.0).collect(),
        nvswitch: guest.nvswitches.iter().map(|switch| switch.0).collect(),
        hardware_root: config.hardware.root.clone(),
        physical_bits: guest.physical_bits,
        numa_node: guest.numa_node,
        qemu: config.hardware.qemu.clone(),
        accel: if config.simulate.is_some() { AcceleratorArg::Tcg } else { AcceleratorArg::Kvm },
        tee: if config.simulate.is_some() { TeeArg::Simulated } else { TeeArg::Tdx },
        quote_socket: config.hardware.quote_socket.clone(),
        cid: 3,
        switched: config.simulate.is_none(),
        // Clients come by the front alone, which has one address for all. No part of `Facts`: guests that ran before there
        // was such a header stay what they are.
        proxy_protocol: true,
        guest_address: guest.guest_address,
        guest_port: guest.guest_port,
        context_tokens: guest.context_tokens,
        threads_decode: guest.threads_decode,
        threads_prefill: guest.threads_prefill,
        prompt_rows: guest.prompt_rows,
    };
    let run = RunPlan {
        spec: spec(&arguments, &release, &model.pack, qemu, guest)?,
        release: *release.digest(),
        model: model.model.0.to_string(),
        pack: model.pack,
        unpublished_shape: guest.unpublished_shape,
        boot_deadline_s: guest.boot_deadline_s,
        silence_deadline_s: guest.silence_deadline_s,
    };
    Ok(Plan { run, release, identity: *model.model.0.identity(), sources, account, arguments })
}

/// Everything that makes one launch differ from another; where a guest listens, and deadlines, are no part of it.
#[derive(Serialize)]
struct Facts<'a> {
    release: &'a Sha256Digest,
    pack: &'a Blake3Digest,
    model: String,
    service: String,
    service_spki: &'a Sha256Digest,
    vcpus: u16,
    memory_mib: u32,
    physical_bits: Option<u8>,
    gpus: Vec<String>,
    /// Left out where there are none: guests of earlier agents are the same ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nvswitches: Vec<String>,
    qemu: &'a Path,
    qemu_version: String,
    simulated: bool,
    quote_socket: &'a Path,
    guest_address: String,
    guest_port: u16,
    context_tokens: u32,
    threads_decode: u16,
    threads_prefill: u16,
    /// As the one below.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_rows: Option<u16>,
    /// Not there where it is left out: guests that ran before there was such a field stay what they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    numa_node: Option<u16>,
}

fn spec(
    arguments: &PrepareArgs,
    release: &CheckedRelease,
    pack: &Blake3Digest,
    qemu_version: QemuVersion,
    guest: &GuestSection,
) -> Result<Sha256Digest, Vec<Refusal>> {
    let facts = Facts {
        release: release.digest(),
        pack,
        model: arguments.model.to_string(),
        service: arguments.service.to_string(),
        service_spki: &arguments.service_spki,
        vcpus: arguments.vcpus,
        memory_mib: arguments.memory_mib,
        physical_bits: arguments.physical_bits,
        gpus: guest.gpus.iter().map(|gpu| gpu.0.to_string()).collect(),
        nvswitches: guest.nvswitches.iter().map(|switch| switch.0.to_string()).collect(),
        qemu: &arguments.qemu,
        qemu_version: qemu_version.to_string(),
        simulated: arguments.tee == TeeArg::Simulated,
        quote_socket: &arguments.quote_socket,
        guest_address: arguments.guest_address.to_string(),
        guest_port: arguments.guest_port,
        context_tokens: arguments.context_tokens,
        threads_decode: arguments.threads_decode,
        threads_prefill: arguments.threads_prefill,
        prompt_rows: arguments.prompt_rows,
        numa_node: arguments.numa_node,
    };
    let bytes = canonical::to_bytes(&facts).map_err(|error| {
        vec![Refusal::new("config_value", "guests", error.to_string(), "use paths and names that are text")]
    })?;
    Ok(Sha256Digest::of(&bytes))
}

fn sources(config: &Config, guest: &GuestSection) -> Result<Vec<Source>, Refusal> {
    let model = config.models.get(&guest.model);
    let addresses = model.map(|model| model.sources.as_slice()).unwrap_or_default();
    let field = format!("models.{}.sources", guest.model);
    let parse = |address: &String| {
        super::config::source(&config.buckets, address, &field, || std::fs::read(&config.cache.authorities))
    };
    addresses.iter().map(parse).collect()
}

fn port_taken(name: &GuestName, guest: &GuestSection, held: Option<SocketAddrV4>) -> Option<Refusal> {
    if held == Some(guest.listen) {
        return None;
    }
    let error = std::net::TcpListener::bind(guest.listen).err()?;
    Some(Refusal::new(
        "port_taken",
        &format!("guests.{name}.listen"),
        format!("cannot listen on {}: {error}", guest.listen),
        "end what listens there (`ss -ltnp`), choose another port, or allow ports below 1024",
    ))
}
