// SPDX-License-Identifier: Apache-2.0
//! Packs from good, bad and broken sources; quota, locks, damage.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod buckets;
mod server;

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use model_cache::{Cache, CacheError, FetchProgress, HeldPack, Limits, Request, Source, SourceError};
use server::{Authority, Manner, Pack, pack, serve, serve_tls};
use types::Blake3Digest;

fn limits() -> Limits {
    Limits { idle: Duration::from_millis(300), pause: Duration::from_millis(1), ..Limits::default() }
}

async fn fetch(cache: &Cache, pack: &Pack, sources: &[Source]) -> Result<HeldPack, CacheError> {
    let request = Request { root: &pack.root, identity: Some(&pack.identity), sources, limits: limits() };
    cache.fetch(&request, &|_| ()).await
}

fn cache(directory: &Path) -> Cache {
    Cache::open(&directory.join("cache"), 1 << 30).unwrap()
}

fn assert_good(cache: &Cache, pack: &Pack, held: &HeldPack) {
    cache.verify(&pack.root, &|_| ()).unwrap();
    let disk = model::disk::Disk::open(std::fs::File::open(held.disk()).unwrap()).unwrap();
    let name = types::ModelId::new(&pack.name, "1", pack.identity).unwrap();
    model::verify(&disk, &model::Key::new(&[7; 32]), &name, model::Ciphertexts::Hashed, &|_| ()).unwrap();
}

fn failure(result: Result<HeldPack, CacheError>) -> SourceError {
    match result.unwrap_err() {
        CacheError::NoSource { mut failures, .. } => failures.pop().unwrap().1,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_pack_comes_from_a_directory_and_is_the_disk_that_guests_read() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 700_000));
    let last = std::sync::Mutex::new(FetchProgress { done: 0, total: 0 });
    let sources = [Source::directory(pack.path.clone())];
    let request = Request { root: &pack.root, identity: None, sources: &sources, limits: limits() };
    let held = cache.fetch(&request, &|progress| *last.lock().unwrap() = progress).await.unwrap();
    assert_good(&cache, &pack, &held);
    let last = *last.lock().unwrap();
    assert!(last.done == last.total && last.total > 700_000);
    let composed = directory.path().join("composed");
    model::disk::compose(&model::Directory::open(&pack.path).unwrap(), &composed, &|_| ()).unwrap();
    assert!(std::fs::read(&composed).unwrap() == std::fs::read(held.disk()).unwrap(), "the same disk");
    // It is here now: no source is asked.
    drop(fetch(&cache, &pack, &[]).await.unwrap());
}

#[tokio::test]
async fn a_pack_comes_over_http_and_goes_on_after_each_cut() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 700_000));
    let good = serve(&pack, Manner::Good).await;
    let cut = serve(&pack, Manner::CutAfter(100_000)).await;
    let held = fetch(&cache, &pack, &[cut.source.clone(), good.source.clone()]).await.unwrap();
    assert_good(&cache, &pack, &held);
    assert!(cut.asked("objects/") >= 1 && good.asked("objects/") >= 1);
}

#[tokio::test]
async fn a_pack_comes_over_https_from_who_the_authority_certified() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 700_000));
    let (ours, theirs) = (Authority::new(), Authority::new());
    let cut = serve_tls(&pack, Manner::CutAfter(100_000), &ours, "127.0.0.1", &ours.pem).await;
    let good = serve_tls(&pack, Manner::Good, &ours, "127.0.0.1", &ours.pem).await;
    // Another authority's, and another host's: neither is asked for anything.
    let foreign = serve_tls(&pack, Manner::Good, &theirs, "127.0.0.1", &ours.pem).await;
    let elsewhere = serve_tls(&pack, Manner::Good, &ours, "models.example", &ours.pem).await;
    for bad in [&foreign, &elsewhere] {
        let error = failure(fetch(&cache, &pack, std::slice::from_ref(&bad.source)).await);
        assert!(matches!(error, SourceError::Io { what: "connecting", .. }), "{error}");
        assert_eq!(bad.asked("/"), 0);
    }
    let sources = [foreign.source.clone(), elsewhere.source.clone(), cut.source.clone(), good.source.clone()];
    let held = fetch(&cache, &pack, &sources).await.unwrap();
    assert_good(&cache, &pack, &held);
    assert!(cut.asked("objects/") >= 1 && good.asked("objects/") >= 1);
    assert_eq!(foreign.asked("/") + elsewhere.asked("/"), 0);
    // A list of authorities that cannot be used is told when the address is read.
    for bad in [&b""[..], b"no certificate", &pack.path.join("pack.json").display().to_string().into_bytes()] {
        assert!(Source::parse("https://models.example/m", || Ok(bad.to_vec())).is_err());
    }
}

#[tokio::test]
async fn hostile_sources_are_left_for_the_next_one() {
    for manner in [
        Manner::NoRanges,
        Manner::WrongByte,
        Manner::Endless,
        Manner::TooLong,
        Manner::Redirect,
        Manner::Silent,
        Manner::Encoded,
        Manner::Missing,
        Manner::Noise,
        Manner::WrongIndex,
        Manner::CutAfter(0),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 400_000));
        let (bad, good) = (serve(&pack, manner).await, serve(&pack, Manner::Good).await);
        let held = fetch(&cache, &pack, &[bad.source.clone(), good.source.clone()]).await.unwrap();
        assert_good(&cache, &pack, &held);
        if matches!(manner, Manner::WrongByte | Manner::TooLong | Manner::Endless) {
            assert_eq!(bad.asked("objects/"), 1, "{manner:?}: who gave wrong bytes is not asked again");
        }
    }
}

#[tokio::test]
async fn an_index_that_comes_byte_by_byte_keeps_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 400_000));
    let (bad, good) = (serve(&pack, Manner::DrippingIndex).await, serve(&pack, Manner::Good).await);
    let limits = Limits { patience: Duration::from_millis(500), slowest: 8 << 20, ..limits() };
    let fetch = async |sources: &[Source]| {
        let request = Request { root: &pack.root, identity: Some(&pack.identity), sources, limits };
        tokio::time::timeout(Duration::from_secs(20), cache.fetch(&request, &|_| ())).await.expect("it has an end")
    };
    assert_eq!(failure(fetch(std::slice::from_ref(&bad.source)).await), SourceError::Slow(8 << 20));
    let held = fetch(&[bad.source.clone(), good.source.clone()]).await.unwrap();
    assert_good(&cache, &pack, &held);
}

#[tokio::test]
async fn each_refusal_says_what_the_source_did() {
    for (manner, expected) in [
        (Manner::WrongByte, SourceError::Digest(0)),
        (Manner::Endless, SourceError::Length),
        (Manner::TooLong, SourceError::Length),
        (Manner::Redirect, SourceError::Status(302)),
        (Manner::Missing, SourceError::Status(404)),
        (Manner::Encoded, SourceError::Encoded),
        (Manner::WrongIndex, SourceError::Root),
        (Manner::Noise, SourceError::Http),
        (Manner::Silent, SourceError::Idle(Duration::from_millis(300))),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 400_000));
        let bad = serve(&pack, manner).await;
        let error = fetch(&cache, &pack, std::slice::from_ref(&bad.source)).await;
        assert_eq!(failure(error), expected, "{manner:?}");
        assert!(cache.list().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_fetch_that_was_given_up_goes_on_where_it_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 1_000_000));
    // All but the last object are there.
    let broken = directory.path().join("broken");
    std::fs::create_dir_all(broken.join("objects")).unwrap();
    std::fs::copy(pack.path.join("pack.json"), broken.join("pack.json")).unwrap();
    for number in 0..pack.objects - 1 {
        let name = model::object_file(u32::try_from(number).unwrap());
        std::fs::copy(pack.path.join(&name), broken.join(&name)).unwrap();
    }
    let error = fetch(&cache, &pack, &[Source::directory(broken)]).await;
    assert!(matches!(failure(error), SourceError::Io { .. }));
    let good = serve(&pack, Manner::Good).await;
    let held = fetch(&cache, &pack, std::slice::from_ref(&good.source)).await.unwrap();
    assert_good(&cache, &pack, &held);
    assert_eq!(good.asked("objects/"), 1, "only what was missing");
}

#[tokio::test]
async fn what_a_crash_left_is_hashed_again_and_not_believed() {
    for spoilt in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 400_000));
        // As after a crash: 100,000 bytes of object 1 are noted.
        let index = model::Directory::open(&pack.path).unwrap();
        let layout = model::disk::Layout::of(model::Source::index(&index)).unwrap();
        let partial = directory.path().join("cache/partial").join(pack.root.to_string());
        std::fs::create_dir_all(&partial).unwrap();
        let disk = std::fs::File::create(partial.join("disk")).unwrap();
        disk.set_len(layout.length).unwrap();
        for (number, keep) in [(0_u32, usize::MAX), (1, 100_000)] {
            let mut bytes = std::fs::read(pack.path.join(model::object_file(number))).unwrap();
            bytes.truncate(keep);
            if spoilt {
                bytes[0] ^= 1;
            }
            disk.write_all_at(&bytes, layout.offsets[usize::try_from(number).unwrap()]).unwrap();
        }
        std::fs::write(partial.join("progress.json"), "{\"done\":[0],\"current\":[1,100000]}").unwrap();
        let good = serve(&pack, Manner::Good).await;
        let result = fetch(&cache, &pack, std::slice::from_ref(&good.source)).await.unwrap();
        let from = good.requests.lock().unwrap().iter().find(|(path, _)| path.ends_with("000001")).unwrap().1;
        assert_eq!(from, 100_000);
        if spoilt {
            // Object 1 came anew; object 0 was noted as verified, and its damage is found by `verify`.
            assert!(matches!(cache.verify(&pack.root, &|_| ()), Err(CacheError::Damaged { .. })));
        } else {
            assert_good(&cache, &pack, &result);
        }
    }
}

#[tokio::test]
async fn a_pack_of_another_model_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, mut pack) = (cache(directory.path()), pack(directory.path(), "m", 1_000));
    pack.identity = Blake3Digest::ZERO;
    let error = fetch(&cache, &pack, &[Source::directory(pack.path.clone())]).await.unwrap_err();
    assert_eq!((error.code(), error.refusal().field.as_str()), ("model_identity_mismatch", "pack"));
}

#[tokio::test]
async fn the_oldest_that_nobody_holds_makes_room() {
    let directory = tempfile::tempdir().unwrap();
    let packs: Vec<Pack> = ["a", "b", "c"].map(|name| pack(directory.path(), name, 400_000)).into();
    let cache = Cache::open(&directory.path().join("cache"), 1_000_000).unwrap();
    let source = |pack: &Pack| [Source::directory(pack.path.clone())];
    let held = fetch(&cache, &packs[0], &source(&packs[0])).await.unwrap();
    drop(fetch(&cache, &packs[1], &source(&packs[1])).await.unwrap());
    drop(fetch(&cache, &packs[2], &source(&packs[2])).await.unwrap());
    let left: Vec<Blake3Digest> = cache.list().unwrap().iter().map(|entry| entry.root).collect();
    assert!(left.contains(&packs[0].root) && left.contains(&packs[2].root) && left.len() == 2, "{left:?}");
    // With both held there is no room, and both stay.
    let also_held = cache.hold(&packs[2].root).unwrap().unwrap();
    let error = fetch(&cache, &packs[1], &source(&packs[1])).await.unwrap_err();
    assert_eq!(error.code(), "cache_quota", "{error}");
    assert_eq!(cache.prune(0).unwrap(), []);
    drop((held, also_held));
    assert_eq!(cache.prune(0).unwrap().len(), 2);
    assert!(cache.list().unwrap().is_empty() && cache.bytes().unwrap() == 0);
}

fn roots(cache: &Cache) -> Vec<Blake3Digest> {
    let mut roots: Vec<Blake3Digest> = cache.list().unwrap().iter().map(|entry| entry.root).collect();
    roots.sort();
    roots
}

fn sorted<const N: usize>(mut roots: [Blake3Digest; N]) -> [Blake3Digest; N] {
    roots.sort();
    roots
}

#[tokio::test]
async fn an_abandoned_fetch_makes_room_before_any_whole_pack() {
    let directory = tempfile::tempdir().unwrap();
    let packs: Vec<Pack> = ["a", "b", "c"].map(|name| pack(directory.path(), name, 400_000)).into();
    let cache = Cache::open(&directory.path().join("cache"), 1_000_000).unwrap();
    let source = |pack: &Pack| [Source::directory(pack.path.clone())];
    drop(fetch(&cache, &packs[1], &source(&packs[1])).await.unwrap());
    // Given up after its room was reserved.
    std::fs::remove_file(packs[2].path.join("objects/000001")).unwrap();
    fetch(&cache, &packs[2], &source(&packs[2])).await.unwrap_err();
    let partial = directory.path().join("cache/partial").join(packs[2].root.to_string());
    assert!(partial.join("disk").metadata().unwrap().len() > 400_000 && cache.bytes().unwrap() > 800_000);
    drop(fetch(&cache, &packs[0], &source(&packs[0])).await.unwrap());
    assert_eq!(roots(&cache), sorted([packs[0].root, packs[1].root]));
    assert!(!partial.exists());
}

#[tokio::test]
async fn nothing_is_removed_for_a_pack_that_finds_no_room() {
    let directory = tempfile::tempdir().unwrap();
    let packs: Vec<Pack> = ["a", "b", "c", "d"].map(|name| pack(directory.path(), name, 400_000)).into();
    let cache = Cache::open(&directory.path().join("cache"), 1_400_000).unwrap();
    let source = |pack: &Pack| [Source::directory(pack.path.clone())];
    let _held = fetch(&cache, &packs[0], &source(&packs[0])).await.unwrap();
    drop(fetch(&cache, &packs[1], &source(&packs[1])).await.unwrap());
    // Another agent is fetching.
    let live = directory.path().join("cache/partial").join(packs[2].root.to_string());
    std::fs::create_dir(&live).unwrap();
    std::fs::write(live.join("disk"), vec![1; 700_000]).unwrap();
    let lock = std::fs::File::create(live.with_extension("lock")).unwrap();
    let lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let error = fetch(&cache, &packs[3], &source(&packs[3])).await.unwrap_err();
    assert_eq!(error.code(), "cache_quota", "{error}");
    assert!(error.refusal().fix.contains("cache prune"));
    assert_eq!(roots(&cache), sorted([packs[0].root, packs[1].root]));
    assert!(live.exists());
    drop(lock);
    drop(fetch(&cache, &packs[3], &source(&packs[3])).await.unwrap());
    assert_eq!(roots(&cache), sorted([packs[0].root, packs[1].root, packs[3].root]));
}

#[tokio::test]
async fn two_agents_fetch_once() {
    let directory = tempfile::tempdir().unwrap();
    let pack = pack(directory.path(), "m", 700_000);
    let (one, two) = (cache(directory.path()), cache(directory.path()));
    let server = serve(&pack, Manner::Good).await;
    let sources = [server.source.clone()];
    let (first, second) = tokio::join!(fetch(&one, &pack, &sources), fetch(&two, &pack, &sources));
    assert_eq!(first.unwrap().disk(), second.unwrap().disk());
    assert_eq!(server.asked("objects/"), pack.objects);
}

#[tokio::test]
async fn damage_in_the_cache_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 400_000));
    let held = fetch(&cache, &pack, &[Source::directory(pack.path.clone())]).await.unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(held.disk()).unwrap();
    file.write_all_at(&[0xff; 8], held.disk().metadata().unwrap().len() - 5_000).unwrap();
    drop(held);
    assert_eq!(cache.verify(&pack.root, &|_| ()).unwrap_err().code(), "cached_pack_damaged");
    assert!(cache.remove(&pack.root).unwrap());
    assert_eq!(cache.verify(&pack.root, &|_| ()).unwrap_err().code(), "pack_not_cached");
}

#[tokio::test]
async fn a_pack_with_a_damaged_public_part_is_shown_and_fetched_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 400_000));
    let source = [Source::directory(pack.path.clone())];
    let place = directory.path().join("cache/packs").join(pack.root.to_string());
    let spoil: [fn(&Path); 3] = [
        |place| std::fs::write(place.join("pack.json"), "{}").unwrap(),
        |place| std::fs::remove_file(place.join("pack.json")).unwrap(),
        |place| std::fs::remove_file(place.join("disk")).unwrap(),
    ];
    for (number, spoil) in spoil.into_iter().enumerate() {
        drop(fetch(&cache, &pack, &source).await.unwrap());
        spoil(&place);
        assert_eq!(roots(&cache), [pack.root]);
        assert_eq!(cache.list().unwrap()[0].identity.is_none(), number < 2);
        cache.verify(&pack.root, &|_| ()).unwrap_err();
        if number < 2 {
            // Held, it stays, and that is said.
            let held = HeldPack::lock_disk(&place.join("disk")).unwrap();
            assert_eq!(fetch(&cache, &pack, &source).await.unwrap_err().code(), "cached_pack_damaged");
            assert!(!cache.remove(&pack.root).unwrap());
            drop(held);
        }
        let held = fetch(&cache, &pack, &source).await.unwrap();
        assert_good(&cache, &pack, &held);
        drop(held);
        spoil(&place);
        assert!(cache.remove(&pack.root).unwrap());
        assert!(cache.list().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_full_disk_is_said_and_can_be_mended() {
    let directory = tempfile::tempdir().unwrap();
    let small = directory.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let options = Some("size=300k");
    let mounted = nix::mount::mount(Some("tmpfs"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), options);
    if mounted.is_err() {
        println!("SKIPPED: a small file system cannot be mounted");
        return;
    }
    let pack = pack(directory.path(), "m", 400_000);
    let cache = Cache::open(&small, 1 << 30).unwrap();
    let sources = [Source::directory(pack.path.clone())];
    let full = fetch(&cache, &pack, &sources).await;
    let room: Option<&str> = Some("size=2m");
    let none = None::<&str>;
    nix::mount::mount(none, &small, none, nix::mount::MsFlags::MS_REMOUNT, room).unwrap();
    let mended = fetch(&cache, &pack, &sources).await;
    let verified = mended.as_ref().ok().map(|_| cache.verify(&pack.root, &|_| ()).is_ok());
    drop(mended);
    nix::mount::umount(&small).unwrap();
    let error = full.unwrap_err();
    assert_eq!((error.code(), error.refusal().field.as_str()), ("disk_full", "cache.dir"), "{error}");
    assert_eq!(verified, Some(true), "with room it is fetched");
}
