// SPDX-License-Identifier: Apache-2.0
//! Attack 64: a log that tells two stories, and witnesses that are missing.

use anyhow::{Context as _, Result};
use release::log::{LogSigner, cosign};
use serde_json::json;
use types::Sha256Digest;

use super::Made;
use super::identity::{edited, part};
use super::world::{NOW, World, random};
use crate::case::Verifier::{Bundle, History, Witness};

const CHECKPOINT: &str = "/verificationMaterial/tlogEntries/0/inclusionProof/checkpoint/envelope";

pub(super) fn cases(world: &mut World) -> Result<Vec<Made>> {
    let mut cases = bundles(world)?;
    // The log grows honestly by two entries.
    let size = 6;
    world.log.append(b"later")?;
    world.log.append(b"latest")?;
    let (grown, proof) = (world.log.checkpoint()?, world.log.tree().consistency_proof(size)?);
    // The same signer tells another story of the same length.
    let mut fork = world.log.fork()?;
    for number in 0..8 {
        fork.append(format!("forged entry {number}").as_bytes())?;
    }
    let (forked, forked_proof) = (fork.checkpoint()?, fork.tree().consistency_proof(size)?);

    let case = |verifier, name, title, origin, expected| Made::new(verifier, name, title, origin, expected);
    let same = "the checkpoint after two more entries, with the consistency proof";
    cases.push(
        case(History, "00-history-accepted", "the log has grown since the bundle was made", same, &[])?
            .with("known", grown.clone().into_bytes())
            .with("proof", lines(&proof)),
    );
    cases.push(
        case(Witness, "00-witness-cosigns", "a witness is asked to cosign the grown log", same, &[])?
            .with("checkpoint", grown.clone().into_bytes())
            .with("proof", lines(&proof)),
    );
    let fork_origin = "the log's key signed a second history of eight other entries";
    let history = &[("release_log_forked", "inclusionProof.checkpoint")];
    for (name, title, proof) in [
        ("64-forked-checkpoint", "the verifier knows a checkpoint of another history", lines(&forked_proof)),
        ("64-forked-checkpoint-without-proof", "another history, and no consistency proof", Vec::new()),
    ] {
        let made = case(History, name, title, fork_origin, history)?;
        cases.push(made.with("known", forked.clone().into_bytes()).with("proof", proof));
    }
    let cosigns = &[("witness_log_forked", "checkpoint")];
    cases.push(
        case(Witness, "64-witness-forked", "a witness is asked to cosign another history", fork_origin, cosigns)?
            .with("checkpoint", forked.into_bytes())
            .with("proof", lines(&forked_proof)),
    );
    let title = "a witness is asked to cosign a log that was cut back";
    let origin = "the witness knows eight entries, the log's key signed the checkpoint of six again";
    let shrunk = &[("witness_log_shrunk", "checkpoint")];
    cases.push(case(Witness, "64-witness-shrunk", title, origin, shrunk)?.with("known", grown.into_bytes()));
    Ok(cases)
}

/// Bundles whose checkpoint does not do.
fn bundles(world: &mut World) -> Result<Vec<Made>> {
    let missing: &[(&str, &str)] = &[("release_witnesses_missing", "inclusionProof.checkpoint")];
    let note = |world: &World, witnesses: &[usize]| -> Result<String> {
        let mut note = world.checkpoint.clone();
        for index in witnesses {
            let witness = world.witnesses.get(*index).context("witness")?;
            note = cosign(witness, None, &note, world.log.signer.public(), &[], NOW)?.0.note().to_owned();
        }
        Ok(note)
    };
    let with = |world: &World, note: String| {
        edited(world, |bundle| {
            *part(bundle, CHECKPOINT)? = json!(note);
            Ok(())
        })
    };
    let one = note(world, &[2])?;
    let twice = format!("{one}{}\n", one.lines().last().context("a cosignature")?);
    let stranger = release::log::WitnessSigner::new("witness-2", &random()?)?;
    let strange = cosign(&stranger, None, &one, world.log.signer.public(), &[], NOW)?.0.note().to_owned();
    let others = note(world, &[1, 2])?;
    let mut cases = vec![
        Made::new(
            Bundle,
            "00-other-witnesses-accepted",
            "two other witnesses of the three",
            "cosigned by the second and the third",
            &[],
        )?
        .with("bundle", with(world, others)?),
    ];
    for (name, title, note) in [
        ("64-no-witness", "no witness cosigned", world.checkpoint.clone()),
        ("64-one-witness-of-two", "one witness cosigned, two are needed", one),
        ("64-one-witness-twice", "one witness's cosignature stands twice", twice),
        ("64-unknown-witness", "the second cosignature is by an unknown key under a known name", strange),
    ] {
        let origin = "the published bundle with this checkpoint";
        cases.push(Made::new(Bundle, name, title, origin, missing)?.with("bundle", with(world, note)?));
    }
    // A checkpoint of three entries cannot hold the sixth.
    let mut short = world.log.fork()?;
    for number in 0..3 {
        short.append(format!("another entry {number}").as_bytes())?;
    }
    let short = short.checkpoint()?;
    let shrunk = edited(world, |bundle| {
        *part(bundle, CHECKPOINT)? = json!(short);
        *part(bundle, "/verificationMaterial/tlogEntries/0/inclusionProof/treeSize")? = json!("3");
        Ok(())
    })?;
    let title = "a checkpoint of three entries for the sixth";
    let origin = "the log's own checkpoint from before the release was logged";
    cases.push(
        Made::new(Bundle, "64-shrunk-checkpoint", title, origin, &[("release_inclusion_proof", "inclusionProof")])?
            .with("bundle", shrunk),
    );
    // The same text, signed by another key under the log's name.
    let impostor = LogSigner::new(world.log.signer.public().origin(), &random()?)?;
    let text = world.checkpoint.split_once("\n\n").context("a checkpoint")?.0;
    let signed = impostor.sign(&format!("{text}\n"))?;
    let title = "the checkpoint is signed by another key under the log's name";
    cases.push(
        Made::new(
            Bundle,
            "64-checkpoint-of-another-key",
            title,
            "the log's text, signed with another key",
            &[("release_checkpoint", "inclusionProof.checkpoint")],
        )?
        .with("bundle", with(world, signed)?),
    );
    Ok(cases)
}

fn lines(proof: &[Sha256Digest]) -> Vec<u8> {
    proof.iter().map(|hash| format!("{hash}\n")).collect::<String>().into_bytes()
}
