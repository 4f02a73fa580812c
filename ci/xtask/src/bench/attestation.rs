// SPDX-License-Identifier: Apache-2.0
//! The figures of `attestation-service/bench`: appraisal against `dcap-qvl`, and the service as a program under load.

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

use super::{Figure, Outcome};
use crate::{process, programs, workspace};

/// What the program prints.
#[derive(Deserialize)]
struct Document {
    figures: Vec<Figure>,
    clients: Value,
    clients_verify: Value,
    seconds: Value,
    rounds: Value,
}

pub(super) fn run() -> anyhow::Result<Outcome> {
    let root = workspace::root()?;
    let programs = programs::release(&["attestation-bench", "attestation-bench-service"])?;
    let target = workspace::target()?;
    let vectors = std::env::var_os("CHRYSALIS_VECTORS").map_or_else(|| root.join("../shared/vectors"), Into::into);
    let mut bench = process::command(programs.join("attestation-bench"));
    // On the disk that the workspace is on: a temporary directory may be memory, which syncs for nothing.
    bench.arg("--service").arg(programs.join("attestation-bench-service")).arg("--directory").arg(&target);
    bench.arg("--vectors").arg(vectors);
    let document = process::json("attestation-bench", &mut bench)?;
    let Document { figures, clients, clients_verify, seconds, rounds } =
        serde_json::from_value(document).context("attestation-bench")?;
    let details = [("clients", clients), ("clients_verify", clients_verify), ("seconds", seconds), ("rounds", rounds)];
    let details = details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(Outcome { figures, details })
}
