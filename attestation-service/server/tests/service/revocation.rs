// SPDX-License-Identifier: Apache-2.0
//! Attack 20: what the service knows of a platform from earlier quotes counts for nothing once collateral revokes it.

use crate::world;

use std::time::Duration;

use attestation_service::service::KnownCollateral;
use tdx_sim::Fault;
use tdx_verify::{Collateral, Uses};
use world::{NOW, World};

fn collateral(world: &World, fault: Option<Fault>) -> KnownCollateral {
    let json = world.platform.collateral(NOW, fault).unwrap().to_json();
    KnownCollateral { in_force: vec![Collateral::from_json(json.as_bytes()).unwrap()], early: Vec::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_platform_gets_no_key_after_its_revocation() {
    let world = World::start().await;
    let guest = world.guest().await;
    let service = std::sync::Arc::clone(&world.service.as_ref().unwrap().service);
    for _ in 0..3 {
        assert!(world.ask(&guest).await.is_ok());
    }
    assert_eq!(service.verification_uses(), Uses { warm: 2, cold: 1 });
    for (fault, code) in [
        (Fault::RevokedPck, "pck_revoked"),
        (Fault::RevokedPlatformCa, "pck_revoked"),
        (Fault::RevokedTcbSigner, "certificate_revoked"),
        (Fault::RevokedTcb, "tcb_revoked"),
        (Fault::RevokedQe, "qe_revoked"),
        (Fault::OutOfDateTcb, "tcb_out_of_date"),
    ] {
        // The very next request, on a platform that was known a moment before.
        service.set_collateral(collateral(&world, Some(fault)));
        for _ in 0..2 {
            assert_eq!(world.refusal(&guest).await[0].0, code);
        }
        service.set_collateral(collateral(&world, None));
        for _ in 0..2 {
            assert!(world.ask(&guest).await.is_ok());
        }
    }
    // A platform that is out of date is known, too: only its policy refuses it.
    assert_eq!(service.verification_uses(), Uses { warm: 2 + 6 + 1, cold: 1 + 5 * 2 + 1 + 6 });
    assert_eq!(world.count("released"), 3 + 6 * 2);
}

/// What expires, expires for known platforms, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_platform_gets_no_key_under_collateral_that_ended() {
    let world = World::start().await;
    let guest = world.guest().await;
    for _ in 0..2 {
        assert!(world.ask(&guest).await.is_ok());
    }
    world.clock.store(NOW + 31 * 86_400, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(world.refusal(&guest).await[0].0, "collateral_expired");
}

/// Weeks before a platform falls out, its operator is told: a warning that is counted, and nothing else changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_warns_of_a_platform_that_will_fall_out() {
    let world = World::start().await;
    let guest = world.guest().await;
    let bad = world.guest_with(|_| (), |registers| registers.mr_td = types::Sha384Digest::of(b"x")).await;
    let service = std::sync::Arc::clone(&world.service.as_ref().unwrap().service);
    let next = |fault| {
        let json = world.platform.collateral_numbered(NOW, 18, fault).unwrap().to_json();
        let early = vec![Collateral::from_json(json.as_bytes()).unwrap()];
        KnownCollateral { early, ..collateral(&world, None) }
    };
    // The watch goes on beside the answer: what must not come is looked for after what must.
    let warned = async |expected: u64| {
        let counted = async {
            while world.count("tcb_early") < expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(60), counted).await;
        assert!(found.is_ok(), "tcb_early was counted {} times, not {expected}", world.count("tcb_early"));
        assert_eq!(world.count("tcb_early"), expected);
    };
    service.set_collateral(next(Some(Fault::OutOfDateTcb)));
    assert!(world.ask(&guest).await.is_ok());
    warned(1).await;
    assert_eq!(world.refusal(&bad).await[0].0, "register_mismatch", "who gets no key is not watched");
    service.set_collateral(next(None));
    assert!(world.ask(&guest).await.is_ok(), "which stays in with the next evaluation");
    service.set_collateral(next(Some(Fault::RevokedTcb)));
    assert!(world.ask(&guest).await.is_ok());
    warned(2).await;
    assert_eq!(world.count("released"), 3);
}
