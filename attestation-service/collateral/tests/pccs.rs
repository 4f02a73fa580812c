// SPDX-License-Identifier: Apache-2.0
//! Fetching, keeping and renewing against a PCCS on loopback that is good, stale, slow, broken or lying.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod fake;

use std::{path::Path, time::Duration};

use collateral::{
    EvaluationSet, FetchError, Fmspc, HttpError, Keeper, Kept, OfferError, REFRESH_EVERY, RefreshError, Refresher,
    Source, State, Wanted,
};
use fake::{Mode, Pccs};
use tdx_sim::{Fault, SimulatedPlatform};
use tdx_verify::{Collateral, TrustAnchors};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;
const SIM: &str = "53494d000000";

fn wanted() -> Wanted {
    SIM.parse().unwrap()
}

fn fmspc() -> Fmspc {
    wanted().fmspc
}

fn platform() -> SimulatedPlatform {
    SimulatedPlatform::generate(NOW).unwrap()
}

fn anchors(platform: &SimulatedPlatform) -> TrustAnchors {
    TrustAnchors::custom(platform.root_der().to_vec())
}

fn source(pccs: &Pccs) -> Source {
    // No answer of this PCCS takes long by itself; a busy machine may.
    Source::new(&pccs.url(), || Ok(Vec::new())).unwrap().within(Duration::from_secs(300))
}

fn refresher(pccs: &Pccs, platform: &SimulatedPlatform, dir: &Path) -> (Refresher, Keeper) {
    let keeper = Keeper::open(dir, anchors(platform)).unwrap();
    (Refresher::new(source(pccs), keeper.clone(), vec![wanted()]).unwrap(), keeper)
}

/// The same with a level that was not up to date.
fn forged(collateral: tdx_sim::Collateral) -> tdx_sim::Collateral {
    let tcb_info = collateral.tcb_info.replace("OutOfDate", "UpToDate");
    assert_ne!(tcb_info, collateral.tcb_info);
    tdx_sim::Collateral { tcb_info, ..collateral }
}

/// The code of each result.
async fn codes(refresher: &mut Refresher, now: u64) -> Vec<String> {
    let results = refresher.refresh(now).await;
    results.into_iter().map(|(_, result)| result.map_or_else(|e| e.refusal().code, |_| "kept".to_owned())).collect()
}

#[tokio::test]
async fn good_collateral_is_kept_as_it_was_signed() {
    let (platform, dir) = (platform(), tempfile::tempdir().unwrap());
    let pccs = Pccs::start(platform.collateral(NOW, None).unwrap());
    let (mut refresher, keeper) = refresher(&pccs, &platform, dir.path());
    assert_eq!(codes(&mut refresher, NOW).await, ["kept"]);
    let Kept { usable, refused } = keeper.load(NOW).unwrap();
    assert_eq!((usable.len(), refused.len()), (1, 0));
    assert_eq!((usable[0].fmspc, usable[0].facts.expires()), (fmspc(), NOW + 30 * DAY));
    // The file is what `--collateral` takes, and its parts are the source's, byte by byte.
    let bytes = std::fs::read(dir.path().join(format!("{SIM}.json"))).unwrap();
    let ours: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let theirs: serde_json::Value = serde_json::from_str(&platform.collateral(NOW, None).unwrap().to_json()).unwrap();
    for part in ["tcb_info", "qe_identity", "pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"]
    {
        assert_eq!(ours[part], theirs[part], "{part}");
    }
    Collateral::from_json(&bytes).unwrap().check(&anchors(&platform), NOW).unwrap();
}

/// The source is down after the first fetch: what is kept is served inside its time, and not a second longer.
#[tokio::test]
async fn a_source_that_is_down_costs_nothing_until_the_end() {
    let (platform, dir) = (platform(), tempfile::tempdir().unwrap());
    let pccs = Pccs::start(platform.collateral(NOW, None).unwrap());
    let (mut refresher, keeper) = refresher(&pccs, &platform, dir.path());
    assert_eq!(codes(&mut refresher, NOW).await, ["kept"]);
    assert_eq!(codes(&mut refresher, NOW + REFRESH_EVERY - 1).await, [""; 0], "not due");
    pccs.set(Mode::Down);
    let mut now = NOW + REFRESH_EVERY;
    assert_eq!(codes(&mut refresher, now).await, ["collateral_source"]);
    assert_eq!(codes(&mut refresher, now + 59).await, [""; 0], "a minute is waited");
    now += 60;
    assert_eq!(codes(&mut refresher, now).await, ["collateral_source"]);
    assert_eq!(codes(&mut refresher, now + 119).await, [""; 0], "then two");
    for (now, state) in
        [(NOW + 22 * DAY, State::Current), (NOW + 23 * DAY, State::Expiring), (NOW + 30 * DAY, State::Expiring)]
    {
        assert_eq!(keeper.load(now).unwrap().usable.len(), 1);
        assert_eq!(keeper.status(now).unwrap()[0].state, state);
    }
    let Kept { usable, refused } = keeper.load(NOW + 30 * DAY + 1).unwrap();
    assert_eq!((usable.len(), refused[0].1.refusal().code.as_str()), (0, "collateral_expired"));
    let status = keeper.status(NOW + 30 * DAY + 1).unwrap();
    assert_eq!(
        (status[0].state, status[0].reason.as_ref().unwrap().code.as_str()),
        (State::Refused, "collateral_expired")
    );
    // It comes back: the collateral is renewed and used again. What is expired is due at once after the wait.
    pccs.set(Mode::Good);
    pccs.serve(platform.collateral(NOW + 31 * DAY, None).unwrap());
    assert_eq!(codes(&mut refresher, NOW + 31 * DAY).await, ["kept"]);
    assert_eq!(keeper.load(NOW + 31 * DAY).unwrap().usable.len(), 1);
}

/// What is older than what was kept is refused, though all of it is signed and in its time, and after a restart, too.
#[tokio::test]
async fn nothing_goes_back() {
    let (platform, dir) = (platform(), tempfile::tempdir().unwrap());
    let pccs = Pccs::start(platform.collateral_numbered(NOW, 18, None).unwrap());
    let later = NOW + REFRESH_EVERY;
    {
        let (mut refresher, _) = refresher(&pccs, &platform, dir.path());
        assert_eq!(codes(&mut refresher, NOW).await, ["kept"]);
    }
    let kept = std::fs::read(dir.path().join(format!("{SIM}.json"))).unwrap();
    for (old, field) in [
        (platform.collateral_numbered(NOW, 17, None), "tcb_evaluation_data_number"),
        (platform.collateral_numbered(NOW - 3000, 18, None), "tcb_info.issue_date"),
    ] {
        pccs.serve(old.unwrap());
        let (refresher, keeper) = refresher(&pccs, &platform, dir.path());
        let error = refresher.fetch(&wanted(), later).await.unwrap_err();
        assert!(
            matches!(&error, RefreshError::Offer(OfferError::RolledBack { field: found, .. }) if *found == field),
            "{error}"
        );
        assert_eq!(error.refusal().code, "collateral_rollback");
        assert_eq!(keeper.load(later).unwrap().usable[0].facts.tcb_evaluation_data_number, 18);
    }
    // A list that forgets a revocation is older than the one that has it.
    let (old, new) = (
        platform.collateral_numbered(NOW, 18, None).unwrap(),
        platform.collateral_numbered(NOW + 100, 18, None).unwrap(),
    );
    for (mixed, field) in [
        (tdx_sim::Collateral { pck_crl: old.pck_crl.clone(), ..new.clone() }, "pck_crl.this_update"),
        (tdx_sim::Collateral { root_ca_crl: old.root_ca_crl.clone(), ..new.clone() }, "root_ca_crl.this_update"),
    ] {
        pccs.serve(new.clone());
        let (refresher, _) = refresher(&pccs, &platform, dir.path());
        refresher.fetch(&wanted(), later).await.unwrap();
        pccs.serve(mixed);
        let error = refresher.fetch(&wanted(), later).await.unwrap_err();
        assert!(
            matches!(&error, RefreshError::Offer(OfferError::RolledBack { field: found, .. }) if *found == field),
            "{error}"
        );
    }
    // Somebody puts the old file back by hand.
    std::fs::write(dir.path().join(format!("{SIM}.json")), kept).unwrap();
    let keeper = Keeper::open(dir.path(), anchors(&platform)).unwrap();
    let Kept { usable, refused } = keeper.load(later).unwrap();
    assert_eq!((usable.len(), refused[0].1.refusal().code.as_str()), (0, "collateral_rollback"));
    // And the record with it can't be made unreadable without notice.
    std::fs::write(dir.path().join(format!("{SIM}.kept.json")), b"{}").unwrap();
    assert_eq!(keeper.load(later).unwrap().refused[0].1.refusal().code, "collateral_store");
}

/// Each way to answer badly has its code, and none of them touches what is kept.
#[tokio::test]
async fn bad_answers_change_nothing() {
    let (platform, dir) = (platform(), tempfile::tempdir().unwrap());
    let pccs = Pccs::start(platform.collateral(NOW, None).unwrap());
    let (refresher, keeper) = refresher(&pccs, &platform, dir.path());
    refresher.fetch(&wanted(), NOW).await.unwrap();
    let files = || {
        let mut files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect::<Vec<_>>()
    };
    let before = files();
    for (mode, code, field) in [
        (Mode::Down, "collateral_source", "pck_crl"),
        (Mode::Status(404), "collateral_source", "pck_crl"),
        (Mode::Status(302), "collateral_source", "pck_crl"),
        (Mode::NotHttp, "collateral_source", "pck_crl"),
        (Mode::LargeBody, "collateral_source", "pck_crl"),
        (Mode::EndlessBody, "collateral_source", "pck_crl"),
        (Mode::LargeHead, "collateral_source", "pck_crl"),
        (Mode::CutBody, "collateral_source", "pck_crl"),
        (Mode::NoChain, "collateral_malformed", "pck_crl"),
        (Mode::BadChain, "collateral_malformed", "pck_crl"),
        (Mode::BadList, "collateral_malformed", "pck_crl"),
        (Mode::NotJson, "collateral_malformed", "tcb_info"),
        (Mode::MoreFields, "collateral_malformed", "tcb_info"),
    ] {
        pccs.set(mode);
        let refusal = refresher.fetch(&wanted(), NOW).await.expect_err("bad").refusal();
        assert_eq!((refusal.code.as_str(), refusal.field.as_str()), (code, field), "{mode:?}: {refusal}");
    }
    pccs.set(Mode::Good);
    let other = SimulatedPlatform::generate(NOW).unwrap();
    let foreign = other.collateral(NOW, None).unwrap();
    let mixed = tdx_sim::Collateral {
        tcb_info_issuer_chain: foreign.tcb_info_issuer_chain.clone(),
        ..platform.collateral(NOW, None).unwrap()
    };
    for (bad, code) in [
        (foreign, "root_untrusted"),
        (mixed, "root_untrusted"),
        (forged(platform.collateral(NOW, None).unwrap()), "collateral_signature"),
        (platform.collateral(NOW, Some(Fault::RevokedTcbSigner)).unwrap(), "certificate_revoked"),
        (platform.collateral(NOW, Some(Fault::ExpiredCollateral)).unwrap(), "collateral_expired"),
        (platform.collateral(NOW, Some(Fault::FutureCollateral)).unwrap(), "collateral_not_yet_valid"),
        (platform.collateral(NOW, Some(Fault::OtherFmspc)).unwrap(), "fmspc_mismatch"),
    ] {
        pccs.serve(bad);
        let refusal = refresher.fetch(&wanted(), NOW).await.expect_err("bad").refusal();
        assert_eq!(refusal.code, code, "{refusal}");
    }
    assert_eq!(files(), before);
    assert_eq!(keeper.load(NOW).unwrap().usable.len(), 1);
}

/// An answer that never ends is waited for until the limit.
#[tokio::test]
async fn a_slow_source_is_given_up() {
    let pccs = Pccs::start(platform().collateral(NOW, None).unwrap());
    pccs.set(Mode::Slow);
    let source = source(&pccs).within(Duration::from_millis(300));
    let error = source.fetch(&wanted(), EvaluationSet::Standard).await.unwrap_err();
    assert!(matches!(error, FetchError::Http { source: HttpError::Timeout(_), .. }), "{error}");
    assert_eq!((error.refusal().code.as_str(), error.refusal().field.as_str()), ("collateral_source", "pck_crl"));
}

/// The next evaluation shows in the status before it is in force, and goes when it is.
#[tokio::test]
async fn the_next_evaluation_is_watched() {
    let (platform, dir) = (platform(), tempfile::tempdir().unwrap());
    let pccs = Pccs::start(platform.collateral_numbered(NOW, 17, None).unwrap());
    let (refresher, keeper) = refresher(&pccs, &platform, dir.path());
    refresher.fetch(&wanted(), NOW).await.unwrap();
    assert_eq!(keeper.status(NOW).unwrap()[0].early, None, "the early one is the one in force");
    pccs.serve_early(Some(platform.collateral_numbered(NOW, 18, Some(Fault::OutOfDateTcb)).unwrap()));
    for later in [10, 20] {
        refresher.fetch(&wanted(), NOW + later).await.unwrap();
        let early = keeper.status(NOW + later).unwrap()[0].early.unwrap();
        assert_eq!((early.tcb_evaluation_data_number, early.first_seen), (18, NOW + 10));
        assert_eq!(early.expected, NOW + 10 + 42 * DAY);
    }
    assert!(keeper.early(fmspc(), NOW).unwrap().is_some());
    assert_eq!(keeper.load(NOW + 20).unwrap().usable.len(), 1, "it is not used to judge");
    // The source loses it for a while, then serves a forged one: what stands there stays.
    pccs.serve_early(None);
    refresher.fetch(&wanted(), NOW + 30).await.unwrap();
    pccs.serve_early(Some(forged(platform.collateral_numbered(NOW, 19, None).unwrap())));
    refresher.fetch(&wanted(), NOW + 40).await.unwrap();
    assert_eq!(keeper.status(NOW + 40).unwrap()[0].early.unwrap().first_seen, NOW + 10);
    // In force.
    pccs.serve_early(None);
    pccs.serve(platform.collateral_numbered(NOW, 18, None).unwrap());
    refresher.fetch(&wanted(), NOW + 50).await.unwrap();
    assert_eq!(keeper.status(NOW + 50).unwrap()[0].early, None);
}

/// https: only under the certificates that were given.
#[tokio::test]
async fn tls_is_judged_by_the_given_certificates() {
    let platform = platform();
    let collateral = platform.collateral(NOW, None).unwrap();
    let (pccs, authority) = Pccs::start_tls(collateral);
    let source = Source::new(&pccs.url(), || Ok(authority.clone().into_bytes())).unwrap();
    let bytes = source.fetch(&wanted(), EvaluationSet::Standard).await.unwrap();
    Collateral::from_json(&bytes).unwrap().check(&anchors(&platform), NOW).unwrap();
    let (_, stranger) = Pccs::start_tls(platform.collateral(NOW, None).unwrap());
    let source = Source::new(&pccs.url(), || Ok(stranger.clone().into_bytes())).unwrap();
    let error = source.fetch(&wanted(), EvaluationSet::Standard).await.unwrap_err();
    assert_eq!(error.refusal().code, "collateral_source");
    assert!(Source::new(&pccs.url(), || Err(std::io::Error::other("no file"))).is_err());
}
