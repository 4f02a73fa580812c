// SPDX-License-Identifier: Apache-2.0
//! Key release over loopback TLS, from the guest's client to the service's store, and what is refused.

use crate::world;

use std::sync::atomic::Ordering;

use release_client::{ClientError, ServiceConnection};
use store::{AuditEntry, OpenOptions, Store};
use tokio::net::TcpStream;
use types::{
    Blake3Digest, Document as _, EventName, Evidence, FreshnessKind, Hex32, MachineShape, ModelId, Registers, Role,
    Sha256Digest, Sha384Digest, shape::ShapeFacts,
};
use world::{KEY, NOW, World, key_pair, model, reasons};

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(code, field)| ((*code).to_owned(), (*field).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_guest_gets_its_key_and_the_log_knows() {
    let mut world = World::start().await;
    let guest = world.guest().await;
    // Behind the entries of what was imported and set.
    for index in 3..6 {
        let released = world.ask(&guest).await.unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!((*released.key, released.key_version), (KEY, 7));
        assert_eq!((released.audit.index, released.audit.tree_size), (index, index + 1));
    }
    assert_eq!(world.count("released"), 3);
    world.service.take().unwrap().end().await;
    let store = Store::open_with(&world.store_dir(), &OpenOptions { sequencer: false, ..OpenOptions::default() });
    let summary = store.unwrap().verify_audit().unwrap();
    assert_eq!((summary.key_releases, summary.refusals), (3, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_key_behind_the_link_is_refused_by_the_guest() {
    let world = World::start().await;
    let stream = TcpStream::connect(world.service.as_ref().unwrap().address).await.unwrap();
    let result = ServiceConnection::connect(stream, Sha256Digest::of(b"other")).await;
    assert!(matches!(result, Err(ClientError::Pin)));
    let floor_ahead = world.connect().await.time(Hex32::new([1; 32]), NOW + 1).await;
    assert!(matches!(floor_ahead, Err(ClientError::Time(_))));
}

/// Attacks 49 and 50, and a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_challenge_is_good_once_for_a_minute_and_for_one_run() {
    let mut world = World::start().await;
    let guest = world.guest().await;
    let mut connection = world.connect().await;
    let challenge = connection.challenge().await.unwrap();
    let key = key_pair();
    let evidence = guest.evidence(&challenge, key.public()).to_canonical().unwrap();
    connection.release(challenge.clone(), &model(), evidence.clone(), key).await.map(drop).unwrap();
    let again = connection.release(challenge, &model(), evidence.clone(), key_pair()).await;
    assert_eq!(reasons(again), pairs(&[("challenge_replayed", "token")]));

    let late = connection.challenge().await.unwrap();
    world.clock.store(NOW + 60, Ordering::SeqCst);
    let result = connection.release(late, &model(), evidence.clone(), key_pair()).await;
    assert_eq!(reasons(result), pairs(&[("challenge_expired", "token")]));

    let mut before = world.connect().await;
    let challenge = before.challenge().await.unwrap();
    drop((connection, before));
    world.launch().await;
    let result = world.connect().await.release(challenge, &model(), evidence, key_pair()).await;
    assert_eq!(reasons(result), pairs(&[("challenge_unknown", "token")]));
    assert_eq!(world.count("challenge_unknown"), 1);
}

/// Attack 50: two racing redemptions. A malformed document redeems, too, and gives nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_racing_redemptions_one_counts() {
    let world = World::start().await;
    let challenge = world.connect().await.challenge().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut connection = world.connect().await;
        let challenge = challenge.clone();
        tasks.spawn(async move { reasons(connection.release(challenge, &model(), b"{}".to_vec(), key_pair()).await) });
    }
    let mut all = tasks.join_all().await;
    all.sort();
    let mut expected = vec![pairs(&[("challenge_replayed", "token")]); 7];
    expected.push(pairs(&[("evidence_malformed", "evidence")]));
    assert_eq!(all, expected);
}

/// Attacks 33 and 36: evidence that another connection's exporter went into.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_of_another_connection_or_challenge_is_refused() {
    let world = World::start().await;
    let guest = world.guest().await;
    let (mut one, mut two) = (world.connect().await, world.connect().await);
    let challenge = one.challenge().await.unwrap();
    let key = key_pair();
    let evidence = guest.evidence(&challenge, key.public()).to_canonical().unwrap();
    let result = two.release(challenge, &model(), evidence, key).await;
    assert_eq!(reasons(result), pairs(&[("binding_mismatch", "freshness.root")]));

    let (first, second) = (one.challenge().await.unwrap(), one.challenge().await.unwrap());
    let key = key_pair();
    let evidence = guest.evidence(&first, key.public()).to_canonical().unwrap();
    let result = one.release(second, &model(), evidence, key).await;
    assert_eq!(reasons(result), pairs(&[("binding_mismatch", "freshness.root")]));
}

/// Attack 35 and its kin: a field of the evidence that the quote does not cover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_that_its_quote_was_not_made_for_is_refused() {
    let world = World::start().await;
    let guest = world.guest().await;
    let mut connection = world.connect().await;
    let challenge = connection.challenge().await.unwrap();
    let (theirs, mine) = (key_pair(), key_pair());
    let mut evidence = guest.evidence(&challenge, theirs.public());
    evidence.hpke_key = *mine.public();
    let result = connection.release(challenge, &model(), evidence.to_canonical().unwrap(), mine).await;
    assert_eq!(reasons(result), pairs(&[("report_data_mismatch", "report_data")]));
}

/// Attacks 21 and 23: one bit in each register.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bit_in_any_register_is_refused_by_name() {
    fn flip(digest: &mut Sha384Digest) {
        let mut bytes = *digest.as_bytes();
        bytes[47] ^= 1;
        *digest = Sha384Digest::from_bytes(bytes);
    }
    type Change = fn(&mut Registers);
    let cases: [(Change, &str, &str); 8] = [
        (|r| flip(&mut r.mr_td), "register_mismatch", "mr_td"),
        (|r| flip(&mut r.rtmr_0), "register_mismatch", "rtmr_0"),
        (|r| flip(&mut r.rtmr_1), "register_mismatch", "rtmr_1"),
        (|r| flip(&mut r.rtmr_2), "register_mismatch", "rtmr_2"),
        (|r| flip(&mut r.rtmr_3), "register_mismatch", "rtmr_3"),
        (|r| flip(&mut r.mr_config_id), "config_digest_mismatch", "mr_config_id"),
        (|r| flip(&mut r.mr_owner), "mr_owner_nonzero", "mr_owner"),
        (|r| flip(&mut r.mr_owner_config), "mr_owner_nonzero", "mr_owner_config"),
    ];
    let world = World::start().await;
    for (change, code, field) in cases {
        let guest = world.guest_with(|_| (), change).await;
        assert_eq!(world.refusal(&guest).await, pairs(&[(code, field)]), "{field}");
    }
    assert_eq!(world.count("released"), 0);
}

/// Attack 24.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_out_of_place_are_refused() {
    let world = World::start().await;
    let good = world.guest().await;
    let mut reordered = good.clone();
    reordered.events.swap(2, 3);
    assert_eq!(world.refusal(&reordered).await, pairs(&[("rtmr3_event_order", "events")]));
    let mut missing = good.clone();
    missing.events.remove(4);
    assert_eq!(world.refusal(&missing).await, pairs(&[("rtmr3_event_missing", "events")]));
    let mut doubled = good.clone();
    doubled.events.insert(1, doubled.events[0].clone());
    assert_eq!(world.refusal(&doubled).await, pairs(&[("rtmr3_event_unexpected", "events")]));
    let mut many = good.clone();
    many.events = vec![good.events[0].clone(); 20_000];
    let long = world.ask(&many).await;
    assert_eq!(reasons(long), pairs(&[("rtmr3_event_unexpected", "events")]));
    let mut early = good.clone();
    early.extend(EventName::Keys, &[1; 32]);
    let expected = pairs(&[("rtmr3_event_unexpected", "events"), ("register_mismatch", "rtmr_3")]);
    assert_eq!(world.refusal(&early).await, expected);
}

/// Attack 67: a guest that closed its keys asks again, and hides it or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_closed_its_keys_gets_none() {
    let world = World::start().await;
    let mut guest = world.guest().await;
    guest.extend(EventName::Keys, model().identity().as_bytes());
    guest.extend(EventName::KeysClosed, b"");
    let honest = world.refusal(&guest).await;
    assert!(honest.contains(&("keys_closed".into(), "rtmr_3".into())), "{honest:?}");
    guest.events.truncate(7);
    let hidden = world.refusal(&guest).await;
    assert_eq!(hidden, pairs(&[("keys_closed", "rtmr_3"), ("register_mismatch", "rtmr_3")]));
}

/// Attacks 28 and 51, and configurations that point elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_for_something_else_is_refused() {
    let world = World::start().await;
    let other = ModelId::new("model", "1", Blake3Digest::of(b"other")).unwrap();
    let guest = world.guest_with(|c| c.model.0 = other.clone(), |_| ()).await;
    assert_eq!(world.refusal(&guest).await, pairs(&[("model_mismatch", "model")]));
    let mut connection = world.connect().await;
    let challenge = connection.challenge().await.unwrap();
    let key = key_pair();
    let evidence = guest.evidence(&challenge, key.public()).to_canonical().unwrap();
    let result = connection.release(challenge, &other, evidence, key).await;
    assert_eq!(reasons(result), pairs(&[("model_key_missing", "model")]));

    let guest = world.guest_with(|c| c.service.spki_sha256.0 = Sha256Digest::of(b"other"), |_| ()).await;
    let expected = pairs(&[
        ("service_pin_mismatch", "guest_config.service.spki_sha256"),
        ("time_key_mismatch", "time.attested.service_key"),
    ]);
    assert_eq!(world.refusal(&guest).await, expected);

    let smaller = |c: &mut types::GuestConfig| {
        let mut facts = c.shape.0.facts();
        facts.vcpus = 1;
        c.shape.0 = MachineShape::new(facts).unwrap();
    };
    let guest = world.guest_with(smaller, |_| ()).await;
    assert_eq!(world.refusal(&guest).await, pairs(&[("shape_not_published", "guest_config.shape")]));
}

/// Attack 28: values that the release allows for one shape are none for another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_of_another_published_shape_are_refused() {
    fn larger(config: &mut types::GuestConfig) {
        config.shape.0 = world::larger_shape();
    }
    fn of_larger(registers: &mut Registers) {
        registers.rtmr_0 = world::registers_of(&world::larger_shape(), Sha384Digest::ZERO).rtmr_0;
    }
    let world = World::start().await;
    assert_eq!(world.refusal(&world.guest_with(larger, of_larger).await).await, []);
    for guest in [world.guest_with(larger, |_| ()).await, world.guest_with(|_| (), of_larger).await] {
        assert_eq!(world.refusal(&guest).await, pairs(&[("register_mismatch", "rtmr_0")]));
    }
}

/// The release's table has 1024 MiB alone, its components say what any machine measures whose ACPI tables it knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shape_in_no_table_is_computed_or_the_missing_part_is_named() {
    fn shape(change: impl FnOnce(&mut ShapeFacts)) -> MachineShape {
        let mut facts = world::shape().facts();
        change(&mut facts);
        MachineShape::new(facts).unwrap()
    }
    let world = World::start().await;
    let medium = shape(|f| f.memory_mib = 2000);
    let configure = |c: &mut types::GuestConfig| c.shape.0 = medium.clone();
    let launch = |r: &mut Registers| *r = world::registers_of(&medium, r.mr_config_id);
    assert_eq!(world.refusal(&world.guest_with(configure, launch).await).await, []);
    // A machine that says 2000 MiB and has 1024: computed, and seen.
    let lying = world.guest_with(configure, |_| ()).await;
    assert_eq!(world.refusal(&lying).await, pairs(&[("register_mismatch", "rtmr_0")]));
    for (other, part) in [
        (shape(|f| f.memory_mib = 2001), "2001 MiB of memory"),
        (shape(|f| f.vcpus = 3), "3 vCPUs"),
        (shape(|f| f.physical_bits = 52), "52 physical address bits"),
        (shape(|f| f.qemu.minor = 2), "QEMU 10.2"),
        (shape(|f| f.devices.reverse()), "the devices"),
    ] {
        let guest = world.guest_with(|c| c.shape.0 = other, |_| ()).await;
        let Err(ClientError::Refused(reasons)) = world.ask(&guest).await else { panic!("{part}: not refused") };
        let [reason] = reasons.as_slice() else { panic!("{part}: {reasons:?}") };
        assert_eq!((reason.code.as_str(), reason.field.as_str()), ("shape_not_published", "guest_config.shape"));
        assert!(reason.detail.contains(&format!("no ACPI reference for {part}")), "{}", reason.detail);
    }
}

/// Evidence that is bound and fresh, and says what no key goes to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_for_another_purpose_is_refused() {
    type Change = fn(&mut Evidence);
    let cases: [(Change, &str, &str); 4] = [
        (|e| e.hpke_key = Hex32::default(), "hpke_key_missing", "hpke_key"),
        (|e| e.gpu.epoch = 1, "gpu_evidence_unexpected", "gpu"),
        (|e| e.role = Role::KeyService, "role_mismatch", "role"),
        (|e| e.freshness.kind = FreshnessKind::Tls, "freshness_kind", "freshness.kind"),
    ];
    let world = World::start().await;
    let guest = world.guest().await;
    for (change, code, field) in cases {
        let mut connection = world.connect().await;
        let challenge = connection.challenge().await.unwrap();
        let key = key_pair();
        let mut evidence = guest.evidence(&challenge, key.public());
        change(&mut evidence);
        guest.quote(&mut evidence);
        let found = reasons(connection.release(challenge, &model(), evidence.to_canonical().unwrap(), key).await);
        assert!(found.contains(&(code.into(), field.into())), "{found:?}");
        assert!(!found.iter().any(|(code, _)| code == "report_data_mismatch"), "{found:?}");
    }
    let guest = world.guest_with(|c| c.role.0 = Role::KeyService, |_| ()).await;
    let expected = pairs(&[
        ("role_mismatch", "release.role"),
        ("role_mismatch", "role"),
        ("role_not_served", "guest_config.role"),
    ]);
    assert_eq!(world.refusal(&guest).await, expected);
}

/// Attack 68: no signed time, or one that is not for this guest's service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_without_attested_time_gets_no_key() {
    let world = World::start().await;
    let mut guest = world.guest().await;
    guest.time.attested = None;
    let codes = world.refusal(&guest).await;
    assert!(codes.contains(&("time_not_attested".into(), "time.attested".into())), "{codes:?}");
    let mut guest = world.guest().await;
    if let Some(time) = &mut guest.time.attested {
        time.unix += 1;
    }
    let codes = world.refusal(&guest).await;
    assert!(codes.contains(&("time_signature".into(), "time.attested.signature".into())), "{codes:?}");
}

/// Attack 68: the floor is the release's own date, and the time for a key is a recent one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_floor_of_another_build_or_an_old_time_is_refused() {
    let world = World::start().await;
    for floor in [0, NOW - 101, NOW - 99] {
        let guest = world.guest_at(floor).await;
        assert_eq!(world.refusal(&guest).await, pairs(&[("time_floor", "time.floor")]), "{floor}");
    }
    let guest = world.guest().await;
    world.clock.store(NOW + 3600, Ordering::SeqCst);
    assert_eq!(world.refusal(&guest).await, []);
    world.clock.store(NOW + 3601, Ordering::SeqCst);
    assert_eq!(world.refusal(&guest).await, pairs(&[("time_stale", "time.attested.unix")]));
    // The service's clock stepped back since it signed.
    world.clock.store(NOW - 300, Ordering::SeqCst);
    assert_eq!(world.refusal(&guest).await, []);
    world.clock.store(NOW - 301, Ordering::SeqCst);
    assert_eq!(world.refusal(&guest).await, pairs(&[("time_range", "time.attested.unix")]));
}

/// Attack 52: revocation counts from the next request on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_release_or_model_or_platform_gets_no_key() {
    let world = World::start().await;
    let guest = world.guest().await;
    let options = OpenOptions { sequencer: false, ..OpenOptions::default() };
    let beside = Store::open_with(&world.store_dir(), &options).unwrap();
    assert!(world.ask(&guest).await.is_ok());
    beside.revoke_platform(&Sha256Digest::of(b"another")).unwrap();
    assert!(world.ask(&guest).await.is_ok());
    beside.revoke_model(&model()).unwrap();
    assert_eq!(world.refusal(&guest).await, pairs(&[("model_revoked", "model")]));
    // The name that the audit log gives the platform is the one to revoke it by.
    let mut platform = None;
    let entries = beside.verify_audit_with(|_, entry| {
        if let AuditEntry::KeyRelease(entry) = entry {
            platform = Some(entry.platform);
        }
    });
    entries.unwrap();
    beside.revoke_platform(&platform.unwrap()).unwrap();
    assert_eq!(world.refusal(&guest).await, pairs(&[("platform_revoked", "platform")]));
    beside.revoke_release(&world.release).unwrap();
    assert_eq!(world.refusal(&guest).await, pairs(&[("release_revoked", "release")]));
}

/// A release for real hardware is none for a simulator's quotes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_for_real_hardware_does_not_fit_simulated_quotes() {
    let mut world = World::stopped(release::Hardware::Tdx);
    world.launch().await;
    let guest = world.guest().await;
    assert_eq!(world.refusal(&guest).await, pairs(&[("hardware_mismatch", "release.hardware")]));
}

/// Attack 53: no key without its audit entry on disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_audit_log_no_key_leaves() {
    let world = World::start().await;
    let guest = world.guest().await;
    let audit = world.store_dir().join("audit");
    let aside = world.store_dir().join("aside");
    std::fs::rename(&audit, &aside).unwrap();
    // Not a directory: nothing can be written below it, by any user.
    std::fs::write(&audit, b"").unwrap();
    let result = world.ask(&guest).await;
    assert_eq!(reasons(result), pairs(&[("audit_unavailable", "service")]));
    assert_eq!(world.count("released"), 0);
}

/// What was refused after a redemption stands in the log, with its codes only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_logged_with_their_codes() {
    let mut world = World::start().await;
    let guest = world.guest_with(|_| (), |r| r.mr_td = Sha384Digest::of(b"x")).await;
    assert_eq!(world.refusal(&guest).await.len(), 1);
    world.service.take().unwrap().end().await;
    let store = Store::open_with(&world.store_dir(), &OpenOptions { sequencer: false, ..OpenOptions::default() });
    let summary = store.unwrap().verify_audit().unwrap();
    assert_eq!((summary.key_releases, summary.refusals), (0, 1));
}
