// SPDX-License-Identifier: Apache-2.0
//! SIGHUP at the real program: policies and the directory of collateral are read again, also what nothing else shows.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod support;

use attestation_bench::{Guest, Program, Scene};
use collateral::{Fmspc, Keeper, PckCa, Wanted};
use rustix::process::{Signal, kill_process};
use support::{codes, starter};
use tdx_verify::TrustAnchors;

struct Asking<'a> {
    scene: &'a Scene,
    guest: Guest,
    runtime: tokio::runtime::Runtime,
    service: Program,
}

impl Asking<'_> {
    fn ask(&self) -> Vec<String> {
        self.runtime.block_on(async {
            let mut connection = Guest::connect(self.service.address, self.scene.pin()).await.unwrap();
            codes(self.guest.ask(&mut connection).await)
        })
    }

    /// Sends the signal and asks until the answer is this one: within less than the minute after which the directory is
    /// read anyway.
    fn until(&self, expected: &[&str]) {
        kill_process(self.service.id(), Signal::HUP).unwrap();
        let began = std::time::Instant::now();
        loop {
            let found = self.ask();
            if found == expected {
                return;
            }
            assert!(began.elapsed().as_secs() < 50, "{found:?}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

fn asking<'a>(scene: &'a Scene, starter: &attestation_bench::Starter) -> Asking<'a> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    Asking { scene, guest: Guest::boot(scene).unwrap(), runtime, service: starter.start(scene).unwrap() }
}

/// A row of the database that was changed by hand moves no mark, so that the service does not look: until it is told.
#[test]
fn policies_are_read_again() {
    let scene = Scene::new_in(&std::env::temp_dir()).unwrap();
    let policy = |number: u32| {
        format!(
            r#"{{"schema":"chrysalis/appraisal-policy/v1","platform":{{"min_tcb_evaluation_data_number":{number}}}}}"#
        )
    };
    scene.beside().unwrap().set_policy("appraisal", policy(1).as_bytes()).unwrap();
    let asking = asking(&scene, &starter());
    assert_eq!(asking.ask(), [""; 0]);
    let database = rusqlite::Connection::open(scene.store_dir().join("store.sqlite")).unwrap();
    let changed = database
        .execute("UPDATE policies SET document = ?1 WHERE name = 'appraisal'", [policy(99).as_bytes()])
        .unwrap();
    assert_eq!(changed, 1);
    assert_eq!(asking.ask(), [""; 0], "no mark says that anything changed");
    asking.until(&["collateral_rollback"]);
}

/// What somebody else kept in the directory counts from the signal on.
#[test]
fn the_directory_of_collateral_is_read_again() {
    let scene = Scene::new_in(&std::env::temp_dir()).unwrap();
    let directory = scene.dir().join("collateral");
    let keeper = Keeper::open(&directory, TrustAnchors::custom(scene.platform.root_der().to_vec())).unwrap();
    let mut starter = starter();
    starter.collateral = false;
    starter.arguments = vec!["--collateral-dir".into(), directory.to_str().unwrap().into()];
    let asking = asking(&scene, &starter);
    assert_eq!(asking.ask(), ["collateral_missing"]);
    let fmspc: Fmspc = "53494d000000".parse().unwrap();
    let issue = scene.platform.collateral(scene.made, None).unwrap().to_json();
    keeper.keep(&Wanted { fmspc, ca: PckCa::Platform }, issue.as_bytes(), None, scene.made).unwrap();
    asking.until(&[]);
}
