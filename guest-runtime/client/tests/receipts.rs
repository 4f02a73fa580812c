// SPDX-License-Identifier: Apache-2.0
//! Receipts that a guest drops, and honest guests under load; hardware simulated.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod world;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use attested_channel::StoredProof;
use client::{AttestedConnection, ReceiptBook, Verifier, chat, connect, question};
use types::{ConnectionProof, Document as _, Sha256Digest};
use world::{World, codes, model};

/// A verifier that knows what lies in the world's folder of receipts, and keeps what it gets there.
fn keeping(world: &World) -> Arc<Verifier> {
    let book = ReceiptBook::open(Some(folder(world))).unwrap();
    Arc::new(Verifier::with_book(world.verifier(|_| ()).policy().clone(), world.anchors(), book))
}

fn folder(world: &World) -> PathBuf {
    world.directory.path().join("receipts")
}

fn names(world: &World, begin: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder(world)).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(begin)).collect();
    found.sort();
    found
}

fn stored_proof(world: &World) -> ConnectionProof {
    let [path] = names(world, "proof-").try_into().unwrap();
    StoredProof::from_canonical(&std::fs::read(path).unwrap()).unwrap().proof
}

/// Asks once; the hash of the receipt.
async fn ask(connection: &mut AttestedConnection) -> Sha256Digest {
    let answer = chat(connection, &question(&model(), "hi", 16), |_| ()).await.unwrap();
    answer.receipt.receipt.digest().unwrap()
}

/// A guest whose attester forgets, or says of another chain than the one it signs.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_drops_receipts_is_refused() {
    let world = World::start().await;
    let verifier = world.verifier(|_| ());
    let mut connection = connect(&world.upstream, &verifier).await.unwrap();
    let evidence = connection.evidence().clone();
    let (first, _) = (ask(&mut connection).await, ask(&mut connection).await);
    let says = |receipt_count, receipt_head| {
        world.lie_in_proofs(&evidence, move |proof| {
            (proof.receipt_count, proof.receipt_head) = (receipt_count, receipt_head);
        });
    };
    // A number set back, to a head that was a true one.
    says(1, first);
    assert_eq!(codes(connect(&world.upstream, &verifier).await), ["receipt_count_behind"]);
    assert_eq!(codes(connection.renew().await), ["receipt_count_behind"]);
    // Whom it has answered nothing, it may say so.
    assert_eq!(codes(connect(&world.upstream, &world.verifier(|_| ())).await), [""; 0]);
    says(2, Sha256Digest::of(b"another chain"));
    assert_eq!(codes(connect(&world.upstream, &verifier).await), ["receipt_head_mismatch"]);
    // More receipts than there are: found out by the next receipt, which must be one of another chain.
    says(3, Sha256Digest::of(b"another chain"));
    let mut ahead = connect(&world.upstream, &verifier).await.unwrap();
    let answer = chat(&mut ahead, &question(&model(), "hi", 16), |_| ()).await;
    assert_eq!(codes(answer), ["receipt_head_mismatch", "receipt_sequence_behind"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_heads_for_one_number_are_refused() {
    let world = World::start().await;
    let others = world.verifier(|_| ());
    let mut connection = connect(&world.upstream, &others).await.unwrap();
    ask(&mut connection).await;
    let verifier = world.verifier(|_| ());
    let evidence = connect(&world.upstream, &verifier).await.unwrap().evidence().clone();
    world.lie_in_proofs(&evidence, |proof| proof.receipt_head = Sha256Digest::of(b"another chain"));
    assert_eq!(codes(connect(&world.upstream, &verifier).await), ["receipt_head_forked"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_started_again_still_knows() {
    let world = World::start().await;
    let mut connection = connect(&world.upstream, &keeping(&world)).await.unwrap();
    let evidence = connection.evidence().clone();
    assert_eq!(stored_proof(&world).receipt_count, 0);
    let first = ask(&mut connection).await;
    ask(&mut connection).await;
    world.lie_in_proofs(&evidence, move |proof| (proof.receipt_count, proof.receipt_head) = (1, first));
    assert_eq!(codes(connect(&world.upstream, &keeping(&world)).await), ["receipt_count_behind"]);
    assert_eq!((names(&world, "refused-proof-").len(), stored_proof(&world).receipt_count), (1, 0));
    world.lie_in_answers(|_| ());
    connect(&world.upstream, &keeping(&world)).await.unwrap();
    assert_eq!(stored_proof(&world).receipt_count, 2);
}

fn run(world: &World, arguments: &[&OsStr]) -> ExitCode {
    let arguments = std::iter::once("attested-proxy".as_ref()).chain(arguments.iter().copied()).map(OsStr::to_owned);
    client::run(&world.anchors(), arguments)
}

fn same(code: ExitCode, number: u8) -> bool {
    format!("{code:?}") == format!("{:?}", ExitCode::from(number))
}

/// An honest guest under load: whatever overtakes whatever, nobody is refused; and afterwards it can be shown that no
/// receipt was dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_honest_guest_is_never_suspected_and_nothing_was_dropped() {
    let world = World::start().await;
    let verifier = keeping(&world);
    let asking = |number: usize| {
        let (upstream, verifier) = (world.upstream.clone(), Arc::clone(&verifier));
        tokio::spawn(async move {
            let mut connection = connect(&upstream, &verifier).await.unwrap();
            for round in 0..ROUNDS {
                ask(&mut connection).await;
                match (number + round) % 3 {
                    0 => connection.renew().await.unwrap(),
                    1 => connection = connect(&upstream, &verifier).await.unwrap(),
                    _ => {}
                }
            }
        })
    };
    for task in (0..CLIENTS).map(asking).collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let (folder, policy) = (folder(&world), world.write_policy());
    assert_eq!(names(&world, "receipt-").len(), CLIENTS * ROUNDS);

    let (upstream, world) = (world.upstream.to_string(), Arc::new(world));
    let here = Arc::clone(&world);
    let audit = move |more: &[&OsStr]| {
        let verify = [
            "verify-receipts".as_ref(),
            folder.as_os_str(),
            "--policy".as_ref(),
            policy.as_os_str(),
            "--json".as_ref(),
        ];
        run(&here, &[&verify, more].concat())
    };
    let (there, folder, policy) = (Arc::clone(&world), self::folder(&world), world.write_policy());
    // A proof of now.
    let check = tokio::task::spawn_blocking(move || {
        let (upstream, folder, policy) = (upstream.as_ref(), folder.as_os_str(), policy.as_os_str());
        let guest: [&OsStr; 4] = ["--upstream".as_ref(), upstream, "--policy".as_ref(), policy];
        run(&there, &[&["check".as_ref()], &guest[..], &["--receipts".as_ref(), folder]].concat())
    });
    assert!(same(check.await.unwrap(), 0));
    assert_eq!(stored_proof(&world).receipt_count, (CLIENTS * ROUNDS) as u64);
    assert!(same(audit(&[]), 0));
    judge_audits(&world, &audit);
}

/// Each thing that is taken away or changed is noticed, and nothing else is.
fn judge_audits(world: &World, audit: &dyn Fn(&[&OsStr]) -> ExitCode) {
    let aside = world.directory.path().join("aside");
    let without = |path: &Path, code: u8| {
        std::fs::rename(path, &aside).unwrap();
        assert!(same(audit(&[]), code), "without {}", path.display());
        std::fs::rename(&aside, path).unwrap();
    };
    let receipts = names(world, "receipt-");
    without(&receipts[0], 2);
    without(&receipts[7], 2);
    without(receipts.last().unwrap(), 2);
    let [proof] = names(world, "proof-").try_into().unwrap();
    without(&proof, 2);
    let [evidence] = names(world, "evidence-").try_into().unwrap();
    without(&evidence, 2);
    // Given by name, the proof may lie anywhere, if the evidence does not.
    std::fs::rename(&proof, &aside).unwrap();
    let given = ["--proof".as_ref(), aside.as_os_str()];
    assert!(same(audit(&given), 0));
    std::fs::rename(&aside, &proof).unwrap();
    // The evidence of the certificate commits to no receipt: nothing is missing, and nothing shown.
    assert!(same(audit(&["--evidence".as_ref(), evidence.as_os_str()]), 0));
    for (path, from, to) in [
        (&receipts[3], "\"completion_tokens\":4", "\"completion_tokens\":5"),
        (&proof, "\"receipt_count\":", "\"receipt_count\":1"),
    ] {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(from));
        std::fs::write(path, text.replacen(from, to, 1)).unwrap();
        assert!(same(audit(&[]), 2), "{from}");
        std::fs::write(path, text).unwrap();
    }
    assert!(same(audit(&["--at".as_ref(), "2001-01-01T00:00:00Z".as_ref()]), 1), "no release is valid then");
    assert!(same(audit(&["--proof".as_ref(), "/nonexistent".as_ref()]), 1));
    assert!(same(audit(&["--unknown".as_ref()]), 64));
    assert!(same(audit(&[]), 0));
}

const CLIENTS: usize = 6;
const ROUNDS: usize = 4;
