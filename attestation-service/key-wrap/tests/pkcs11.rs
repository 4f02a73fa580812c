// SPDX-License-Identifier: Apache-2.0
//! A key in a token of SoftHSM: it never leaves it, opens only what it wrapped, and other keys are not taken for it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass};
use cryptoki::session::UserType;
use key_wrap::{KekError, KekSource, WrapError};

const MODULES: [&str; 2] = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"];
const DIRECTORY: &str = "CHRYSALIS_TEST_TOKEN";

/// The module reads where its tokens are from its environment: the cases run in a process of their own.
#[test]
fn a_token_keeps_its_key() {
    let Some(module) = MODULES.iter().find(|path| Path::new(path).is_file()) else {
        eprintln!("SKIPPED: keys in a PKCS#11 token: SoftHSM is not installed");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("tokens")).unwrap();
    let config = dir.path().join("softhsm2.conf");
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        dir.path().join("tokens").display()
    );
    std::fs::write(&config, text).unwrap();
    for token in ["chrysalis", "twin", "twin"] {
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", token, "--pin", "1234", "--so-pin", "5678"])
            .env("SOFTHSM2_CONF", &config)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let cases = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inside", "--nocapture"])
        .env("SOFTHSM2_CONF", &config)
        .env("CHRYSALIS_TEST_MODULE", module)
        .env("CHRYSALIS_TEST_PIN", "1234")
        .env(DIRECTORY, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&cases.stderr);
    assert!(
        cases.status.success() && said.contains("all cases ran"),
        "{said}{}",
        String::from_utf8_lossy(&cases.stdout)
    );
}

/// Runs in the process that the test above starts.
#[test]
fn inside() {
    let Some(dir) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let module = std::env::var("CHRYSALIS_TEST_MODULE").unwrap();
    let pin = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let good = pin("pin", "1234\n");
    let source = |token: &str, object: &str, pin: &Path| -> KekSource {
        let pin = pin.display();
        format!("pkcs11:token={token};object={object}?module-path={module}&pin-source=file:{pin}").parse().unwrap()
    };
    let kek = source("chrysalis", "kek", &good);
    // In the order of an operator's mistakes.
    let refused = |source: &KekSource| source.open().err().unwrap();
    assert!(matches!(refused(&kek), KekError::Wrap(WrapError::Unavailable(_))), "no such key yet");
    let wrong = source("chrysalis", "kek", &pin("wrong", "4321"));
    assert!(matches!(refused(&wrong), KekError::Pin(_)));
    assert!(matches!(refused(&source("missing", "kek", &good)), KekError::Wrap(WrapError::Unavailable(_))));
    assert!(matches!(refused(&source("twin", "kek", &good)), KekError::Unfit(_)), "two tokens of one name");
    let exposed = dir.join("exposed");
    std::fs::write(&exposed, "1234").unwrap();
    std::fs::set_permissions(&exposed, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(refused(&source("chrysalis", "kek", &exposed)), KekError::Private(_)));

    let made = kek.create().unwrap();
    let wrapped = made.wrap(b"secret", b"context").unwrap();
    // Made once: another `create` takes the one that is there; the PIN may come from the environment.
    let again: KekSource =
        format!("pkcs11:token=chrysalis;object=kek?module-path={module}&pin-source=env:CHRYSALIS_TEST_PIN")
            .parse()
            .unwrap();
    for other in [kek.create().unwrap(), kek.open().unwrap(), again.open().unwrap()] {
        assert_eq!((other.id(), other.is_remote()), (made.id(), true));
        assert_eq!(other.open(&wrapped, b"context").unwrap().as_slice(), b"secret");
    }
    assert_ne!(wrapped, made.wrap(b"secret", b"context").unwrap(), "nonces are fresh");
    // The name is this key's, and rows of the time when labels were names are still tried.
    let (label, id) = made.id().split_once("?id=").unwrap();
    assert_eq!((label, id.len()), ("pkcs11:chrysalis/kek", 32));
    for (name, may) in [(made.id(), true), (label, true), ("pkcs11:chrysalis/kek?serial=1", true)] {
        assert_eq!(made.may_open(name), may, "{name}");
    }
    assert!(!made.may_open("pkcs11:chrysalis/kek2") && !made.may_open("pkcs11:twin/kek"));
    // The process is logged in by now, so that the token would let any PIN pass: it is not asked again.
    assert!(matches!(refused(&wrong), KekError::Pin(said) if said.contains("not tried again")));
    pin("wrong", "1234");
    assert_eq!(wrong.open().unwrap().open(&wrapped, b"context").unwrap().as_slice(), b"secret", "another PIN");
    assert_eq!(made.open(&wrapped, b"Context").unwrap_err(), WrapError::Open);
    for at in 0..wrapped.len() {
        let mut changed = wrapped.clone();
        changed[at] ^= 1;
        assert_eq!(made.open(&changed, b"context").unwrap_err(), WrapError::Open, "byte {at}");
        assert_eq!(made.open(&wrapped[..at], b"context").unwrap_err(), WrapError::Open);
    }
    assert_eq!(made.open(&wrapped, b"context").unwrap().as_slice(), b"secret", "after all that it still works");
    assert_eq!(made.wrap(&[0; 5000], b"context").unwrap_err(), WrapError::Seal);
    let strange = source("chrysalis", "other", &good).create().unwrap();
    assert_ne!(strange.id().split_once('?').unwrap().1, made.id().split_once('?').unwrap().1);
    assert_eq!(strange.open(&wrapped, b"context").unwrap_err(), WrapError::Open, "another key");

    let [loose, short, plain] = ["loose", "short", "plain"].map(|object| source("chrysalis", object, &good));
    keys_of_another_kind(&module, &loose, &short, &plain);
    eprintln!("all cases ran");
}

/// A key that can leave the token, and one that is too short.
fn keys_of_another_kind(module: &str, loose: &KekSource, short: &KekSource, plain: &KekSource) {
    let module = Pkcs11::new(module).unwrap();
    // Another handle of the module that is in use.
    let _ = module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    let slots = module.get_slots_with_token().unwrap();
    let slot = slots.into_iter().find(|slot| module.get_token_info(*slot).unwrap().label() == "chrysalis").unwrap();
    let session = module.open_rw_session(slot).unwrap();
    let _ = session.login(UserType::User, Some(&cryptoki::types::AuthPin::from("1234")));
    for (label, extractable, length) in [("loose", true, 32_u64), ("short", false, 16)] {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::Token(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(extractable),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::ValueLen(length.into()),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
    }
    // One that was made without an id is named by its token.
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Token(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::ValueLen(32_u64.into()),
        Attribute::Label(b"plain".to_vec()),
    ];
    session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
    let serial = module.get_token_info(slot).unwrap().serial_number().to_owned();
    assert_eq!(plain.open().unwrap().id(), format!("pkcs11:chrysalis/plain?serial={serial}"));
    for source in [loose, short] {
        assert!(matches!(source.open().err().unwrap(), KekError::Unfit(_)));
        assert!(matches!(source.create().err().unwrap(), KekError::Unfit(_)), "one that is there is not replaced");
    }
}
