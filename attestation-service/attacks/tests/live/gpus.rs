// SPDX-License-Identifier: Apache-2.0
//! GPUs: each case from files, and as the GPUs of a guest that asks a running service for a key.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use attacks::case::{Case, Run, committed, directories};
use attacks::gpu::{EPOCH, RANDOM};
use attacks::program::Program;
use gpu_verify::DriverState;
use release_client::key_release_protocol::{ReleaseKeyPair, UnwrapErr};
use types::{Base64, GpuDriver, GpuEvidence, GpuReport, Hex32, Refusal};

use crate::guest::Guest;
use crate::run::reasons;
use crate::world::World;

fn cases() -> Vec<(PathBuf, Case)> {
    let all = directories(&committed()).unwrap().into_iter().map(|dir| (Case::read(&dir).unwrap(), dir));
    all.filter(|(case, _)| case.run == Run::Gpu).map(|(case, dir)| (dir, case)).collect()
}

fn files(case: &Case, dir: &Path, input: &str) -> Vec<PathBuf> {
    if !case.inputs.contains_key(input) {
        return Vec::new();
    }
    let found = case.files(dir, input).unwrap().unwrap();
    found.into_iter().map(|file| file.canonicalize().unwrap()).collect()
}

fn roots(case: &Case, dir: &Path) -> PathBuf {
    files(case, dir, "root").remove(0)
}

fn from_files(case: &Case, dir: &Path) -> Result<()> {
    let program = Program::new(env!("CARGO_BIN_EXE_attacks-service")).under(&committed().join("common/root.der"));
    let mut arguments: Vec<OsString> =
        vec!["appraise-gpu".into(), "--at".into(), case.at.clone().context("at")?.into()];
    for input in case.inputs.keys().filter(|input| *input != "root") {
        arguments.extend(files(case, dir, input).into_iter().flat_map(|f| [format!("--{input}").into(), f.into()]));
    }
    arguments.extend(case.arguments.iter().map(OsString::from));
    let refusals = program.with_gpu_roots(&roots(case, dir))?.call(arguments)?.reasons()?;
    case.compare(dir, "from files", &case.expected, &refusals)
}

/// Evidence as the guest collected it, and as it shows it.
fn evidence(case: &Case, dir: &Path) -> Result<(GpuEvidence, GpuEvidence)> {
    let read = |reports: &str, chains: &str, kind: &str| -> Result<Vec<GpuReport>> {
        let pairs = files(case, dir, reports).into_iter().zip(files(case, dir, chains)).zip(0_u32..);
        let report = |((report, chain), number): ((PathBuf, PathBuf), u32)| {
            Ok(GpuReport {
                uuid: format!("{kind}-{number:08x}"),
                report: Base64::new(std::fs::read(report)?).context("report")?,
                chain: Base64::new(std::fs::read(chain)?).context("chain")?,
            })
        };
        pairs.map(report).collect()
    };
    let guest = case.gpu.as_ref().context("gpu")?;
    let state: DriverState = serde_json::from_slice(&std::fs::read(files(case, dir, "driver-state").remove(0))?)?;
    let DriverState { confidential, dev_tools, protected_pcie } = state;
    let version = guest.driver.clone();
    let shown = GpuEvidence {
        epoch: EPOCH,
        random: RANDOM,
        reports: read("report", "chain", "GPU")?,
        switches: read("switch-report", "switch-chain", "SWX")?,
        driver: Some(GpuDriver { version, confidential, dev_tools, protected_pcie }),
    };
    let mut measured = shown.clone();
    for number in 0..guest.gone {
        let mut gone = shown.reports.first().context("a report")?.clone();
        gone.uuid = format!("GPU-ff{number:06x}");
        measured.reports.push(gone);
    }
    Ok((measured, shown))
}

/// One guest with these GPUs asks for a key.
fn over_the_wire(world: &World, case: &Case, dir: &Path) -> Result<()> {
    let (measured, shown) = evidence(case, dir)?;
    let text = std::fs::read_to_string(files(case, dir, "policy").remove(0))?;
    let policy = world.file("policy.json");
    std::fs::write(&policy, format!("{{\"schema\":\"chrysalis/appraisal-policy/v1\",\"gpu\":{text}}}"))?;
    world.store.set_policy(Some(&policy))?;
    let configured = case.gpu.as_ref().context("gpu")?.configured;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let refusals: Option<Vec<Refusal>> = runtime.block_on(async {
        let mut connection = world.running()?.connect().await?;
        let floor = world.statement.predicate.source_date_epoch;
        let attested = connection.time(Hex32::new([9; 32]), floor).await?;
        let guest = Guest::boot_with_gpus(world, attested, configured, measured, shown)?;
        let challenge = connection.challenge().await?;
        let key = ReleaseKeyPair::generate(&mut UnwrapErr(getrandom::SysRng));
        let evidence = guest.evidence(&challenge, challenge.binding(), key.public(), &[], &[])?;
        reasons(connection.release(challenge, &attacks::wire::model()?, evidence, key).await)
    })?;
    case.compare(dir, "over the wire", case.over_the_wire(), &refusals.unwrap_or_default())
}

fn fail(wrong: &[anyhow::Error], count: usize) {
    let text: String = wrong.iter().map(|error| format!("{error:#}\n")).collect();
    assert!(count > 0 && wrong.is_empty(), "{} of {count} cases:\n{text}", wrong.len());
}

#[test]
fn gpus_are_judged_from_files() {
    let cases = cases();
    let wrong: Vec<_> = cases.iter().filter_map(|(dir, case)| from_files(case, dir).err()).collect();
    fail(&wrong, cases.len());
}

/// One service for all cases with the same manifests and OCSP answers, over one store.
#[test]
fn gpus_are_judged_over_the_wire() {
    let cases = cases();
    let mut groups: BTreeMap<Vec<OsString>, Vec<&(PathBuf, Case)>> = BTreeMap::new();
    for item in &cases {
        let arguments = ["rim", "ocsp"].into_iter().flat_map(|input| {
            let files = files(&item.1, &item.0, input);
            files.into_iter().flat_map(move |file| [OsString::from(format!("--{input}")), file.into_os_string()])
        });
        groups.entry(arguments.collect()).or_default().push(item);
    }
    let mut world = World::with_gpu_roots(&roots(&cases[0].1, &cases[0].0)).unwrap();
    world.publish(release::Hardware::Simulated, None).unwrap();
    let mut wrong = Vec::new();
    for (arguments, group) in groups {
        // The service before must have left the store.
        world.service = None;
        let collateral = [world.file("collateral.json")];
        world.service = Some(world.store.serve(&collateral, &arguments).unwrap());
        wrong.extend(group.into_iter().filter_map(|(dir, case)| over_the_wire(&world, case, dir).err()));
    }
    fail(&wrong, cases.len());
}
