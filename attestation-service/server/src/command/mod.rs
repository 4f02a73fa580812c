// SPDX-License-Identifier: Apache-2.0
//! The commands, one file each.

mod admin;
mod appraise;
mod appraise_gpu;
mod audit;
mod backup;
mod check;
mod collateral;
mod ear;
mod kek;
mod manual;
mod owner;
mod policy;
mod serve;

use anyhow::Context as _;
pub(crate) use appraise_gpu::AppraiseGpuArgs;
use gpu_verify::GpuAnchors;
use store::{OpenOptions, Store};
use tdx_verify::TrustAnchors;

use crate::{
    cli::{Command, StoreArgs},
    openapi,
    outcome::Outcome,
};

/// Runs one command.
pub(crate) fn run(command: Command, anchors: &TrustAnchors, gpu: &GpuAnchors) -> anyhow::Result<Outcome> {
    match command {
        Command::Init(args) => admin::init(&args),
        Command::Serve(args) => serve::serve(&args, anchors, gpu),
        Command::Identity(args) => admin::identity(&args),
        Command::Keys(command) => admin::keys(command),
        Command::Releases(command) => admin::releases(command),
        Command::Platforms(command) => admin::platforms(&command),
        Command::Policy(command) => policy::run(&command),
        Command::Owner(command) => owner::run(&command),
        Command::Audit(command) => audit::run(command),
        Command::Collateral(command) => collateral::run(&command, anchors),
        Command::Appraise(args) => appraise::appraise(&args, anchors, gpu),
        Command::AppraiseGpu(args) => appraise_gpu::appraise_gpu(&args, gpu),
        Command::Kek(command) => kek::run(&command),
        Command::Backup(args) => backup::backup(&args),
        Command::Restore(args) => backup::restore(&args),
        Command::Ear(command) => ear::run(&command),
        Command::CheckConfig(args) => check::check(&args, anchors),
        Command::Manual { out } => manual::manual(&out),
        Command::Openapi => {
            let document = openapi::document();
            Ok(Outcome::document(serde_json::to_string_pretty(&document)?, document))
        }
    }
}

/// Opens a store beside a running service: everything but appending to the audit log.
fn open_beside(args: &StoreArgs) -> anyhow::Result<Store> {
    let options = OpenOptions { sequencer: false, ..open_options(args) };
    Store::open_with(&args.store, &options).with_context(|| format!("could not open the store {}", args.store))
}

/// Enters in the audit log what was just changed; a running service on a directory does it itself.
fn entered(store: &Store) {
    if let Err(error) = store.enter_changes() {
        eprintln!("warning: the change holds, and stands in the audit log only with the service's next entry: {error}");
    }
}

/// The keys of the arguments; for a service.
fn open_options(args: &StoreArgs) -> OpenOptions {
    let mut keks = args.kek.iter().cloned();
    OpenOptions { kek: keks.next(), other_keks: keks.collect(), ..OpenOptions::default() }
}

/// Seconds since 1970 by this machine's clock.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
