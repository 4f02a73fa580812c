// SPDX-License-Identifier: Apache-2.0
//! The real program whose disk is full, or whose database is damaged or gone while it runs: no key without its entry, no
//! damage that stays, and keys again afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod support;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use attestation_bench::{Guest, Program, Scene};
use release_client::ServiceConnection;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Resource, Rlimit, prlimit};
use support::{Got, codes, compare, got, starter};

/// Asks so often; the keys, and the codes of the refusals.
async fn ask(guest: &Guest, connection: &mut ServiceConnection, times: usize) -> (Vec<Got>, Vec<String>) {
    let (mut keys, mut refusals) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let answered = match connection.challenge().await {
            Ok(challenge) => {
                guest.answer(connection, challenge.clone()).await.map(|released| got(&challenge, &released))
            }
            Err(error) => Err(error),
        };
        match answered {
            Ok(key) => keys.push(key),
            Err(error) => refusals.extend(codes(Err(error))),
        }
    }
    (keys, refusals)
}

fn all_unavailable(refusals: &[String]) -> bool {
    refusals.iter().all(|code| ["store_unavailable", "audit_unavailable"].contains(&code.as_str()))
}

/// Fills the disk and makes room again, twice; then ends the service and starts it over what is there.
fn fill(scene: &Scene, full: impl Fn(&Program, bool)) {
    let guest = Guest::boot(scene).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let service = starter().start(scene).unwrap();
    let mut keys = Vec::new();
    runtime.block_on(async {
        let mut connection = Guest::connect(service.address, scene.pin()).await.unwrap();
        for is_full in [false, true, false, true, false] {
            full(&service, is_full);
            let (mut given, refusals) = ask(&guest, &mut connection, 5).await;
            let expected = if is_full { (0, 5) } else { (5, 0) };
            assert_eq!((given.len(), refusals.len()), expected, "{is_full} {refusals:?}");
            assert!(all_unavailable(&refusals), "{refusals:?}");
            keys.append(&mut given);
        }
    });
    assert_eq!(service.terminate().unwrap(), Some(0));
    assert_eq!(compare(scene, &keys), 15);
    let service = starter().start(scene).unwrap();
    runtime.block_on(async {
        let mut connection = Guest::connect(service.address, scene.pin()).await.unwrap();
        assert_eq!(ask(&guest, &mut connection, 1).await.0.len(), 1);
    });
}

/// No file can grow: 503 with a code, no key, no damage; with space again the same process gives keys.
#[test]
fn files_that_cannot_grow_are_no_key_and_no_damage() {
    let scene = Scene::new_in(&std::env::temp_dir()).unwrap();
    fill(&scene, |service, full| {
        let limit = Rlimit { current: full.then_some(16), maximum: None };
        prlimit(Some(service.id()), Resource::Fsize, limit).unwrap();
    });
}

/// A file system in memory, unmounted in the end.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// The same with a file system that has no block left, which fails in other places: the log of the database is
/// written, but not grown.
#[test]
fn a_full_file_system_is_no_key_and_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    if mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=16m")).is_err() {
        println!("SKIPPED: a small file system cannot be mounted");
        return;
    }
    let small = Small(dir.path().to_owned());
    let scene = Scene::new_in(&small.0).unwrap();
    let filler = small.0.join("filler");
    fill(&scene, |_, full| {
        if !full {
            let _ = fs::remove_file(&filler);
            return;
        }
        let mut file = fs::File::create(&filler).unwrap();
        let mut length = 1 << 20;
        while length > 0 {
            if file.write_all(&vec![1; length]).is_err() {
                length /= 2;
            }
        }
    });
    drop(scene);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to)
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The database is cut, overwritten or taken away beside the running service. Whatever it still gives has its entry, what
/// it refuses has a code, and over the database of before with the log of now it starts again and gives keys.
#[test]
fn a_database_that_is_lost_beside_the_service_gives_no_key_without_its_entry() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("cut", |path| drop(fs::File::options().write(true).truncate(true).open(path).unwrap())),
        ("overwritten", |path| {
            let length = fs::metadata(path).unwrap().len();
            let mut file = fs::File::options().write(true).open(path).unwrap();
            file.write_all(&vec![0xa5; usize::try_from(length).unwrap()]).unwrap();
        }),
        ("taken away", |path| fs::remove_file(path).unwrap()),
    ];
    for (name, damage) in damages {
        let scene = Scene::new_in(&std::env::temp_dir()).unwrap();
        let guest = Guest::boot(&scene).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        // As it is when nobody has it open: one file.
        let before = scene.dir().join("before");
        copy(&scene.store_dir(), &before);
        let service = starter().start(&scene).unwrap();
        let mut keys = Vec::new();
        runtime.block_on(async {
            let mut connection = Guest::connect(service.address, scene.pin()).await.unwrap();
            keys.append(&mut ask(&guest, &mut connection, 3).await.0);
            assert_eq!(keys.len(), 3, "{name}");
            damage(&scene.store_dir().join("store.sqlite"));
            let (mut given, refusals) = ask(&guest, &mut connection, 20).await;
            assert!(all_unavailable(&refusals), "{name}: {refusals:?}");
            println!("{name}: {} keys, {} refusals", given.len(), refusals.len());
            keys.append(&mut given);
        });
        assert_eq!(service.terminate().unwrap(), Some(0), "{name}");
        for file in ["store.sqlite", "store.sqlite-wal", "store.sqlite-shm"] {
            let _ = fs::remove_file(scene.store_dir().join(file));
        }
        fs::copy(before.join("store.sqlite"), scene.store_dir().join("store.sqlite")).unwrap();
        let service = starter().start(&scene).unwrap();
        runtime.block_on(async {
            let mut connection = Guest::connect(service.address, scene.pin()).await.unwrap();
            assert_eq!(ask(&guest, &mut connection, 1).await.0.len(), 1, "{name}");
        });
        assert_eq!(service.terminate().unwrap(), Some(0), "{name}");
        assert_eq!(compare(&scene, &keys), keys.len() as u64 + 1, "{name}");
    }
}
