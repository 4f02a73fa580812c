// SPDX-License-Identifier: Apache-2.0
//! The real program with a PCCS: collateral comes from there, is kept, and outlives the PCCS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

#[path = "../../collateral/tests/fake/mod.rs"]
#[allow(dead_code, reason = "two of its modes are used here")]
mod fake;

use std::path::PathBuf;

use attestation_bench::{Guest, Scene, Starter};
use fake::{Mode, Pccs};
use release_client::ClientError;
use tdx_sim::Fault;

/// What one guest gets: nothing, or the code of its refusal.
fn ask(starter: &Starter, scene: &Scene) -> String {
    let service = starter.start(scene).unwrap();
    let guest = Guest::boot(scene).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let code = runtime.block_on(async {
        let mut connection = Guest::connect(service.address, scene.pin()).await.unwrap();
        match guest.ask(&mut connection).await {
            Ok(_) => String::new(),
            Err(ClientError::Refused(reasons)) => reasons[0].code.clone(),
            Err(other) => panic!("{other}"),
        }
    });
    assert_eq!(service.terminate().unwrap(), Some(0));
    code
}

#[test]
fn collateral_comes_from_the_pccs_and_outlives_it() {
    let scene = Scene::new_in(&std::env::temp_dir()).unwrap();
    let kept = scene.dir().join("collateral");
    let pccs = Pccs::start(scene.platform.collateral_numbered(scene.made, 18, None).unwrap());
    let dir = kept.to_str().unwrap().to_owned();
    let mut starter = Starter::new(PathBuf::from(env!("CARGO_BIN_EXE_attestation-bench-service")));
    starter.collateral = false;
    starter.arguments = vec!["--collateral-dir".into(), dir, "--pccs".into(), pccs.url()];
    assert_eq!(ask(&starter, &scene), "collateral_missing", "no kind of platform is named, and none is kept");
    starter.arguments.extend(["--fmspc".into(), "53494d000000".into()]);
    assert_eq!(ask(&starter, &scene), "");
    pccs.set(Mode::Down);
    assert_eq!(ask(&starter, &scene), "", "what is kept is in its time");
    // The file is replaced by an older issue: refused, and renewed from the PCCS when that is there again.
    let file = kept.join("53494d000000.json");
    std::fs::write(&file, scene.platform.collateral_numbered(scene.made, 17, None).unwrap().to_json()).unwrap();
    assert_eq!(ask(&starter, &scene), "collateral_missing");
    pccs.set(Mode::Good);
    pccs.serve(scene.platform.collateral_numbered(scene.made, 17, None).unwrap());
    assert_eq!(ask(&starter, &scene), "collateral_missing", "the PCCS has the older issue, too");
    pccs.serve(scene.platform.collateral_numbered(scene.made, 19, Some(Fault::OutOfDateTcb)).unwrap());
    assert_eq!(ask(&starter, &scene), "tcb_out_of_date");
}
