// SPDX-License-Identifier: Apache-2.0
//! How a host stands: good, falling out, out, or not known, at times either side of each date.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use collateral::{Keeper, Outlook, Standing, Wanted};
use tdx_sim::{Fault, QuoteVersion, SimulatedPlatform, TdReport};
use tdx_verify::{AcceptedTcb, PlatformPolicy, TcbStatus, TrustAnchors};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

struct World {
    platform: SimulatedPlatform,
    keeper: Keeper,
    quote: Vec<u8>,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let platform = SimulatedPlatform::generate(NOW).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::open(dir.path(), TrustAnchors::custom(platform.root_der().to_vec())).unwrap();
        let quote = platform.quote(&TdReport::example(), QuoteVersion::V4, None).unwrap();
        Self { platform, keeper, quote, _dir: dir }
    }

    fn keep(&self, at: u64, standard: Option<Fault>, early: Option<Option<Fault>>) {
        let issue = |number, fault| self.platform.collateral_numbered(at, number, fault).unwrap().to_json();
        let early = early.map(|fault| issue(18, fault).into_bytes());
        let wanted = Wanted::of_quote(&self.quote).unwrap();
        self.keeper.keep(&wanted, issue(17, standard).as_bytes(), early.as_deref(), at).unwrap();
    }

    fn outlook(&self, now: u64) -> Outlook {
        self.keeper.outlook(&self.quote, &PlatformPolicy::default(), now)
    }
}

#[test]
fn a_good_host_stands_and_its_platform_is_read_from_its_quote() {
    let world = World::new();
    assert_eq!(world.outlook(NOW).standing, Standing::Unknown);
    assert_eq!(world.outlook(NOW).reasons[0].code, "collateral_missing");
    world.keep(NOW, None, Some(None));
    let outlook = world.outlook(NOW);
    assert_eq!((outlook.standing, outlook.reasons.len()), (Standing::Good, 0));
    assert_eq!(outlook.fmspc, Some("53494d000000".parse().unwrap()));
    // What can't be told is no alarm: the collateral is over.
    let late = world.outlook(NOW + 31 * DAY);
    assert_eq!((late.standing, late.reasons[0].code.as_str()), (Standing::Unknown, "collateral_expired"));
}

#[test]
fn the_next_evaluation_is_told_weeks_before() {
    let world = World::new();
    world.keep(NOW, None, Some(Some(Fault::OutOfDateTcb)));
    let outlook = world.outlook(NOW + DAY);
    assert_eq!(outlook.standing, Standing::FallsOut { at: NOW + 42 * DAY });
    let [reason] = &outlook.reasons[..] else { panic!("{:?}", outlook.reasons) };
    assert_eq!(reason.code, "tcb_falls_out");
    for words in ["falls out on 2027-02-26", "TCB evaluation 18", "OutOfDate", "PCE has 13, needs 14"] {
        assert!(reason.detail.contains(words), "{words}: {}", reason.detail);
    }
    assert!(reason.fix.contains("libsgx-ae-pce"), "{}", reason.fix);
    // Then it comes into force.
    world.platform.collateral_numbered(NOW + 42 * DAY, 18, Some(Fault::OutOfDateTcb)).map(drop).unwrap();
    let at = NOW + 42 * DAY;
    let issue = world.platform.collateral_numbered(at, 18, Some(Fault::OutOfDateTcb)).unwrap().to_json();
    world.keeper.keep(&Wanted::of_quote(&world.quote).unwrap(), issue.as_bytes(), None, at).unwrap();
    let outlook = world.outlook(at);
    assert_eq!((outlook.standing, outlook.reasons[0].code.as_str()), (Standing::Out, "tcb_out"));
}

#[test]
fn the_quoting_enclave_counts_and_so_does_a_revocation() {
    for (fault, words) in [
        (Fault::OutOfDateQe, "quoting enclave has"),
        (Fault::RevokedPck, "revoked"),
        (Fault::RevokedTcb, "PCE has"),
        (Fault::NoTcbLevel, "PCE has"),
    ] {
        let world = World::new();
        world.keep(NOW, Some(fault), None);
        let outlook = world.outlook(NOW);
        assert_eq!(outlook.standing, Standing::Out, "{fault:?}: {:?}", outlook.reasons);
        assert!(outlook.reasons[0].detail.to_lowercase().contains(&words.to_lowercase()), "{:?}", outlook.reasons);
    }
}

#[test]
fn a_grace_ends_at_its_date_and_patience_without_end_is_none() {
    let world = World::new();
    world.keep(NOW, Some(Fault::OutOfDateTcb), None);
    let policy = |until| PlatformPolicy {
        tcb: vec![
            AcceptedTcb { status: TcbStatus::UpToDate, until: None },
            AcceptedTcb { status: TcbStatus::OutOfDate, until },
        ],
        ..PlatformPolicy::default()
    };
    let standing = |until, now| world.keeper.outlook(&world.quote, &policy(until), now).standing;
    assert_eq!(standing(Some(NOW + DAY), NOW), Standing::FallsOut { at: NOW + DAY });
    assert_eq!(standing(Some(NOW + DAY), NOW + DAY - 1), Standing::FallsOut { at: NOW + DAY });
    assert_eq!(standing(Some(NOW + DAY), NOW + DAY), Standing::Out);
    assert_eq!(standing(None, NOW), Standing::Good);
    // The early evaluation's status is accepted, but not for long enough.
    let world = World::new();
    world.keep(NOW, None, Some(Some(Fault::OutOfDateTcb)));
    let standing = |until| world.keeper.outlook(&world.quote, &policy(Some(until)), NOW + DAY).standing;
    assert_eq!(standing(NOW + 40 * DAY), Standing::FallsOut { at: NOW + 42 * DAY });
    assert_eq!(standing(NOW + 50 * DAY), Standing::Good);
}

/// A quote that is not this platform's, or no quote, never says that the host is good, or out.
#[test]
fn a_bad_quote_tells_nothing() {
    let world = World::new();
    world.keep(NOW, None, None);
    let mut changed = world.quote.clone();
    changed[100] ^= 1;
    let other = SimulatedPlatform::generate(NOW).unwrap();
    let other = other.quote(&TdReport::example(), QuoteVersion::V4, None).unwrap();
    for quote in [&changed[..], &other, b"", b"quote", &world.quote[..world.quote.len() - 1]] {
        let outlook = world.keeper.outlook(quote, &PlatformPolicy::default(), NOW);
        assert_eq!(outlook.standing, Standing::Unknown, "{outlook:?}");
        assert!(!outlook.reasons.is_empty());
    }
}
