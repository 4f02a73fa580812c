// SPDX-License-Identifier: Apache-2.0
//! Packs from a store that takes signed requests alone.

mod store;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use model_cache::{Bucket, BucketStyle, StoreFault};
use store::{BAIT, GOOD, Settings, Store};

use super::*;

const KEYS: &str = "[default]\naws_access_key_id = AKID\naws_secret_access_key = se/cr+et\n";

fn source(directory: &Path, store: &Store, keys: &str) -> Source {
    let credentials = directory.join("keys");
    std::fs::write(&credentials, keys).unwrap();
    std::fs::set_permissions(&credentials, std::fs::Permissions::from_mode(0o600)).unwrap();
    let bucket = Bucket {
        section: "buckets.m".to_owned(),
        endpoint: format!("http://127.0.0.1:{}", store.port),
        region: "eu-central-1".to_owned(),
        name: "models".to_owned(),
        style: BucketStyle::Path,
        credentials,
    };
    Source::bucket(&bucket, "packs/a b", || Ok(Vec::new())).unwrap()
}

#[tokio::test]
async fn a_pack_comes_by_signed_requests_and_goes_on_with_signed_ranges() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 700_000));
    let store = store::start(&pack.path, Settings { cut: 100_000, ..GOOD }).await;
    let held = fetch(&cache, &pack, &[source(directory.path(), &store, KEYS)]).await.unwrap();
    assert_good(&cache, &pack, &held);
    let taken = store.taken.lock().unwrap().clone();
    assert!(taken.iter().all(|(path, _)| path.starts_with("/models/packs/a%20b/")), "{taken:?}");
    assert!(taken.iter().filter(|(_, range)| range.is_some()).count() >= pack.objects, "{taken:?}");
    assert_eq!(*store.refused.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_session_token_is_sent_and_signed_and_a_renewed_file_counts_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 400_000));
    let store = store::start(&pack.path, Settings { token: Some("TOKEN=2"), ..GOOD }).await;
    let old = source(directory.path(), &store, &format!("{KEYS}aws_session_token = TOKEN=1\n"));
    let error = failure(fetch(&cache, &pack, std::slice::from_ref(&old)).await);
    assert!(matches!(error, SourceError::Store { fault: StoreFault::Token, .. }), "{error}");
    std::fs::write(directory.path().join("keys"), format!("{KEYS}aws_session_token = TOKEN=2\n")).unwrap();
    let held = fetch(&cache, &pack, &[old]).await.unwrap();
    assert_good(&cache, &pack, &held);
}

#[tokio::test]
async fn a_bucket_before_the_hosts_name_is_asked_there() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 400_000));
    let store = store::start(&pack.path, Settings { virtual_host: true, ..GOOD }).await;
    let bucket = Bucket {
        section: "buckets.m".to_owned(),
        endpoint: format!("http://localhost:{}", store.port),
        region: "eu-central-1".to_owned(),
        name: "models".to_owned(),
        style: BucketStyle::VirtualHost,
        credentials: directory.path().join("keys"),
    };
    drop(source(directory.path(), &store, KEYS));
    // On many machines no resolver knows models.localhost.
    let source = Source::bucket(&bucket, "packs/a b", || Ok(Vec::new())).unwrap();
    let held = fetch(&cache, &pack, &[source]).await.unwrap();
    assert_good(&cache, &pack, &held);
    assert!(store.taken.lock().unwrap().len() > pack.objects && store.refused.lock().unwrap().is_empty());
}

/// What rotates a key does to its file while a request is under way.
fn at_refusal(directory: &Path, act: impl Fn(PathBuf) + Send + Sync + 'static) -> Settings {
    let keys = directory.join("keys");
    Settings { on_refusal: Some(Arc::new(move || act(keys.clone()))), ..GOOD }
}

#[tokio::test]
async fn a_key_that_is_renewed_beside_a_fetch_counts_in_it() {
    let wrong = [KEYS.replace("se/cr+et", "se/cr+es"), KEYS.replace("AKID", "AKIX")];
    for (first, token, code) in [
        (format!("{KEYS}aws_session_token = TOKEN=1\n"), true, "ExpiredToken"),
        (wrong[0].clone(), false, "SignatureDoesNotMatch"),
        (wrong[1].clone(), false, "InvalidAccessKeyId"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 400_000));
        let renewed = if token { format!("{KEYS}aws_session_token = TOKEN=2\n") } else { KEYS.to_owned() };
        let settings = Settings {
            token: token.then_some("TOKEN=1"),
            later: token.then_some((2, "TOKEN=2")),
            ..at_refusal(directory.path(), move |keys| std::fs::write(keys, &renewed).unwrap())
        };
        let store = store::start(&pack.path, settings).await;
        let held = fetch(&cache, &pack, &[source(directory.path(), &store, &first)]).await.unwrap();
        assert_good(&cache, &pack, &held);
        assert_eq!(*store.refused.lock().unwrap(), [code]);
    }
}

#[tokio::test]
async fn a_refused_key_is_tried_again_once_and_only_where_it_is_another_one() {
    let wrong = KEYS.replace("se/cr+et", "se/cr+es");
    let (same, other) = (format!("# of today\n{wrong}"), KEYS.replace("se/cr+et", "other"));
    for (written, requests) in [(wrong.clone(), 1), (same, 1), (other, 2)] {
        let directory = tempfile::tempdir().unwrap();
        let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 300_000));
        // Each refusal meets another file, in the last case.
        let settings = at_refusal(directory.path(), move |keys| {
            let more = if requests > 1 { std::fs::read_to_string(&keys).unwrap().len() } else { 0 };
            std::fs::write(keys, written.replace("other", &"x".repeat(more.max(1)))).unwrap();
        });
        let store = store::start(&pack.path, settings).await;
        let error = fetch(&cache, &pack, &[source(directory.path(), &store, &wrong)]).await.unwrap_err();
        assert_eq!(error.refusals()[1].code, "store_signature_refused", "{error}");
        assert_eq!(*store.refused.lock().unwrap(), vec!["SignatureDoesNotMatch"; requests]);
    }
    // What another key would not change is not asked again.
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 300_000));
    let settings = at_refusal(directory.path(), |keys| std::fs::write(keys, KEYS.replace("AKID", "AKIX")).unwrap());
    let store = store::start(&pack.path, Settings { ahead: 3600, ..settings }).await;
    let error = failure(fetch(&cache, &pack, &[source(directory.path(), &store, KEYS)]).await);
    assert!(matches!(error, SourceError::Store { fault: StoreFault::Clock, .. }), "{error}");
    assert_eq!(store.refused.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_renewed_file_that_others_may_read_signs_nothing_either() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 300_000));
    let settings = at_refusal(directory.path(), |keys| {
        std::fs::write(&keys, KEYS).unwrap();
        std::fs::set_permissions(keys, std::fs::Permissions::from_mode(0o640)).unwrap();
    });
    let store = store::start(&pack.path, settings).await;
    let wrong = KEYS.replace("se/cr+et", "se/cr+es");
    let error = fetch(&cache, &pack, &[source(directory.path(), &store, &wrong)]).await.unwrap_err();
    assert_eq!(error.refusals()[1].code, "store_credentials_unusable", "{error}");
    assert_eq!((store.refused.lock().unwrap().len(), store.taken.lock().unwrap().len()), (1, 0));
}

/// One attempt each: a store may count who is wrong too often.
#[tokio::test]
async fn each_refusal_of_a_store_says_what_to_mend_and_shows_nothing_of_its_answer() {
    let wrong_secret = KEYS.replace("se/cr+et", "se/cr+es");
    let wrong_id = KEYS.replace("AKID", "AKIX");
    let cases: [(Settings, &str, &str, &str); 7] = [
        (GOOD, &wrong_secret, "store_signature_refused", "buckets.m.credentials"),
        (GOOD, &wrong_id, "store_key_unknown", "buckets.m.credentials"),
        (Settings { ahead: 3600, ..GOOD }, KEYS, "store_clock_skewed", "buckets.m.endpoint"),
        (Settings { ahead: -3600, ..GOOD }, KEYS, "store_clock_skewed", "buckets.m.endpoint"),
        (Settings { token: Some("T"), ..GOOD }, KEYS, "store_token_refused", "buckets.m.credentials"),
        (Settings { region: "us-east-1", ..GOOD }, KEYS, "store_region_wrong", "buckets.m.region"),
        (Settings { redirect: true, ..GOOD }, KEYS, "store_redirects", "buckets.m.endpoint"),
    ];
    for (settings, keys, code, field) in cases {
        let directory = tempfile::tempdir().unwrap();
        let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 300_000));
        let store = store::start(&pack.path, settings).await;
        let error = fetch(&cache, &pack, &[source(directory.path(), &store, keys)]).await.unwrap_err();
        let reasons = error.refusals();
        assert_eq!((reasons[0].code.as_str(), reasons.len()), ("model_not_available", 2));
        assert_eq!((reasons[1].code.as_str(), reasons[1].field.as_str()), (code, field));
        assert!(!reasons[1].fix.is_empty());
        let shown = format!("{error} {error:?} {reasons:?}");
        for secret in [BAIT, "se/cr", "AKI"] {
            assert!(!shown.contains(secret), "{secret}: {shown}");
        }
        assert!(store.refused.lock().unwrap().len() <= 1 && store.taken.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_missing_object_is_told_and_another_source_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 300_000));
    let empty = tempfile::tempdir().unwrap();
    let store = store::start(empty.path(), GOOD).await;
    let missing = source(directory.path(), &store, KEYS);
    let error = failure(fetch(&cache, &pack, std::slice::from_ref(&missing)).await);
    assert!(matches!(error, SourceError::Store { fault: StoreFault::NoObject, .. }), "{error}");
    let good = serve(&pack, Manner::Good).await;
    let held = fetch(&cache, &pack, &[missing, good.source.clone()]).await.unwrap();
    assert_good(&cache, &pack, &held);
}

#[tokio::test]
async fn a_file_that_others_may_read_signs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, pack) = (cache(directory.path()), pack(directory.path(), "m", 300_000));
    let store = store::start(&pack.path, GOOD).await;
    let source = source(directory.path(), &store, KEYS);
    std::fs::set_permissions(directory.path().join("keys"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = fetch(&cache, &pack, &[source]).await.unwrap_err();
    let reasons = error.refusals();
    assert_eq!(reasons[1].code, "store_credentials_unusable", "{error}");
    assert_eq!((store.refused.lock().unwrap().len(), store.taken.lock().unwrap().len()), (0, 0));
}
