// SPDX-License-Identifier: Apache-2.0
//! Attacks on the channel between a client and a guest: the program `attested-proxy` against the real attester and the real
//! API over sockets, with somebody in between or in their place. Hardware simulated.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

#[path = "../../../../guest-runtime/client/tests/world/mod.rs"]
mod world;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use attacks::case::{Case, Run, committed, directories, name};
use attacks::program::{Answer, Program};
use attacks::resume::Offer;
use attester_protocol::ServingAnswer;
use attester_protocol::ServingRequest;
use client::{ReceiptBook, Upstream, Verifier, chat, connect, question};
use http::{Method, StatusCode};
use types::{ConnectionProof, Evidence, FreshnessKind, Hex32, Sha256Digest};
use world::liar::{self, Handler, Tls, always};
use world::raw_client::Client;
use world::{World, model};

/// One call of the program, off the runtime's threads.
async fn call(program: &Program, arguments: Vec<OsString>) -> Result<Answer> {
    let program = program.clone();
    tokio::task::spawn_blocking(move || program.call(arguments)).await?
}

async fn check(program: &Program, upstream: &Upstream, policy: &Path) -> Result<Answer> {
    check_against(program, upstream, policy, None).await
}

/// With what a client has kept of the guest.
async fn check_against(
    program: &Program,
    upstream: &Upstream,
    policy: &Path,
    receipts: Option<&Path>,
) -> Result<Answer> {
    let mut arguments: Vec<OsString> =
        vec!["check".into(), "--upstream".into(), upstream.to_string().into(), "--policy".into(), policy.into()];
    arguments.extend(receipts.into_iter().flat_map(|folder| ["--receipts".into(), folder.into()]));
    call(program, arguments).await
}

/// A client that has asked twice and keeps the receipts, or that has seen how many receipts others got.
struct Asked {
    folder: PathBuf,
    evidence: Evidence,
    /// Hashes of the two receipts.
    heads: [Sha256Digest; 2],
}

async fn asked(world: &World, by_others: bool) -> Result<Asked> {
    let folder = world.directory.path().join("receipts");
    let others = world.verifier(|_| ());
    let book = ReceiptBook::open(Some(folder.clone()))?;
    let own = Arc::new(Verifier::with_book(others.policy().clone(), world.anchors(), book));
    let mut connection = connect(&world.upstream, if by_others { &others } else { &own }).await?;
    let mut heads = [Sha256Digest::ZERO; 2];
    for head in &mut heads {
        let answer = chat(&mut connection, &question(&model(), "hi", 16), |_| ()).await?;
        *head = types::Document::digest(&answer.receipt.receipt)?;
    }
    let evidence = connect(&world.upstream, &own).await?.evidence().clone();
    Ok(Asked { folder, evidence, heads })
}

fn change_proof(world: &World, change: fn(&mut ConnectionProof)) {
    world.lie_in_answers(move |answer| {
        if let ServingAnswer::Proof { proof } = answer {
            change(proof);
        }
    });
}

/// A server with a key of its own, which passes everything on to a genuine guest.
async fn relay(world: &World, tls: Tls) -> Upstream {
    let address = format!("{}:{}", world.upstream.host(), world.upstream.port()).parse().unwrap();
    let genuine = Arc::new(tokio::sync::Mutex::new(Client::connect(address).await));
    let pass: Handler = Arc::new(move |path, body| {
        let genuine = Arc::clone(&genuine);
        Box::pin(async move {
            let method = if body.is_empty() { Method::GET } else { Method::POST };
            let body = String::from_utf8(body.to_vec()).unwrap();
            let (status, _, body) = genuine.lock().await.send(method, &path, body).await;
            (status, body)
        })
    });
    liar::start(tls, pass).await
}

/// Pins another instance than this guest's in its policy.
fn pin_another(policy: &Path) -> Result<()> {
    let mut tree: serde_json::Value = serde_json::from_slice(&std::fs::read(policy)?)?;
    tree["appraisal"]["instances"] = serde_json::json!([Hex32::new([1; 32])]);
    Ok(std::fs::write(policy, serde_json::to_vec(&tree)?)?)
}

async fn run(case: &Case, dir: &Path) -> Result<()> {
    let world = World::start().await;
    let root = world.directory.path().join("root.der");
    std::fs::write(&root, world.root())?;
    let policy = world.write_policy();
    let mut program = Program::new(env!("CARGO_BIN_EXE_attacks-proxy")).under(&root);
    let mut upstream = world.upstream.clone();
    let mut receipts = None;
    let silent = || always(StatusCode::NOT_FOUND, "{}");
    match case.scenario.as_deref().context("scenario")? {
        "genuine" => {}
        "relay" => upstream = relay(&world, Tls::Own).await,
        "diverted" => pin_another(&policy)?,
        "reflected" => {
            upstream = liar::start(Tls::Own, Arc::new(|_, body| Box::pin(async move { (StatusCode::OK, body) }))).await;
        }
        "other-kind" => change_proof(&world, |proof| proof.freshness.kind = FreshnessKind::KeyRelease),
        "stolen-certificate" => upstream = liar::start(Tls::Stolen, silent()).await,
        "certificate-without-evidence" => upstream = liar::start(Tls::Plain, silent()).await,
        "old-proof" => {
            let mut first = None;
            world.lie_in_answers(move |answer| {
                if let ServingAnswer::Proof { proof } = answer {
                    *proof = first.get_or_insert_with(|| proof.clone()).clone();
                }
            });
            ensure!(check(&program, &upstream, &policy).await?.code == 0, "the first proof is good");
        }
        "no-proof" => upstream = liar::start(Tls::Own, silent()).await,
        "other-exporter" => world.lie_in_requests(|request| {
            if let ServingRequest::Prove { binding, .. } = request {
                *binding = Hex32::new([1; 32]);
            }
        }),
        "tickets" => upstream = relay(&world, Tls::Tickets).await,
        "longer-path" => change_proof(&world, |proof| proof.path.push(Sha256Digest::ZERO)),
        "other-index" => change_proof(&world, |proof| proof.leaf_index = 1),
        "other-tree-size" => change_proof(&world, |proof| proof.freshness.tree_size = 2),
        "receipts" => receipts = Some(asked(&world, false).await?.folder),
        "fewer-receipts" => {
            let Asked { folder, evidence, heads } = asked(&world, false).await?;
            world.lie_in_proofs(&evidence, move |proof| (proof.receipt_count, proof.receipt_head) = (1, heads[0]));
            receipts = Some(folder);
        }
        "other-head" => {
            let Asked { folder, evidence, .. } = asked(&world, false).await?;
            world.lie_in_proofs(&evidence, |proof| proof.receipt_head = Sha256Digest::of(b"another chain"));
            receipts = Some(folder);
        }
        "two-heads" => {
            let Asked { folder, evidence, .. } = asked(&world, true).await?;
            world.lie_in_proofs(&evidence, |proof| proof.receipt_head = Sha256Digest::of(b"another chain"));
            receipts = Some(folder);
        }
        "dropped-receipt" => {
            let Asked { folder, .. } = asked(&world, false).await?;
            let first = std::fs::read_dir(&folder)?.filter_map(|entry| Some(entry.ok()?.path()));
            let first = first.filter(|path| path.to_string_lossy().ends_with("-00000000.json")).collect::<Vec<_>>();
            let audit =
                || vec!["verify-receipts".into(), folder.clone().into(), "--policy".into(), policy.clone().into()];
            ensure!(call(&program, audit()).await?.code == 0, "all receipts are there at first");
            let [first] = first.as_slice() else { bail!("there is one first receipt: {first:?}") };
            std::fs::remove_file(first)?;
            let answer = call(&program, audit()).await?;
            ensure!(answer.document["chains"][0]["missing"] == serde_json::json!([[0, 0]]), "{}", answer.document);
            return case.compare(dir, "by the audit", &case.expected, &answer.reasons()?);
        }
        "released" => program = Program::new(env!("CARGO_BIN_EXE_attacks-released-proxy")),
        "any-in-policy" => {
            let text = std::fs::read_to_string(&policy)?;
            std::fs::write(&policy, text.replacen('{', "{\"allow_simulated\":true,", 1))?;
            let answer = check(&Program::new(env!("CARGO_BIN_EXE_attacks-released-proxy")), &upstream, &policy).await?;
            let known = std::fs::read_to_string(&policy)?.replacen("\"allow_simulated\":true,", "", 1);
            ensure!(answer.code != 0 && answer.document["accepted"] == false, "{answer:?}");
            std::fs::write(&policy, known)?;
            program = Program::new(env!("CARGO_BIN_EXE_attacks-released-proxy"));
        }
        other => bail!("no scenario is called {other}"),
    }
    let answer = check_against(&program, &upstream, &policy, receipts.as_deref()).await?;
    case.compare(dir, "by the client", &case.expected, &answer.reasons()?)?;
    if case.expected.is_empty() {
        // Nothing pins the guest: said, since another genuine one would do as well.
        ensure!(answer.document["verdict"]["instance"] == "any", "{}", answer.document);
    }
    Ok(())
}

/// Attack 37, from the other side: a guest's API takes no ticket and no early data, and hands out no ticket.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_guest_resumes_nothing() {
    let world = World::start().await;
    let address = format!("{}:{}", world.upstream.host(), world.upstream.port()).parse().unwrap();
    let request = b"GET /v1/models HTTP/1.1\r\nHost: guest.invalid\r\nConnection: close\r\n\r\n";
    let offer = move || -> Result<()> {
        let offered = Offer::new()?.to(address, request)?;
        ensure!(!offered.resumed && !offered.early_data, "the guest resumed a session");
        let (answer, tickets) = offered.send(request)?;
        let answers = answer.windows(9).filter(|window| window == b"HTTP/1.1 ").count();
        ensure!((answers, tickets) == (1, 0), "{answers} answers to one request, {tickets} tickets");
        Ok(())
    };
    tokio::task::spawn_blocking(offer).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn channels_are_judged_by_the_client() {
    let (mut wrong, mut count) = (String::new(), 0);
    for dir in directories(&committed()).unwrap() {
        let case = Case::read(&dir).unwrap();
        if case.run == Run::Channel {
            count += 1;
            if let Err(error) = run(&case, &dir).await {
                wrong += &format!("{}: {error:#}\n", name(&dir).unwrap());
            }
        }
    }
    assert!(count > 0 && wrong.is_empty(), "of {count} cases:\n{wrong}");
}
