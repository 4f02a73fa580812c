// SPDX-License-Identifier: Apache-2.0
//! An AES-256 key in a PKCS#11 token that never leaves it. The module that drives the token is a library which the
//! operator chose; it is loaded into this process and can do whatever this process can.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{Mechanism, aead::GcmParams};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use types::Sha256Digest;
use zeroize::Zeroizing;

use crate::source::{KekSourceError, pairs, private_text};
use crate::{KekError, KeyWrap, MAX_SECRET, WrapError, random};

/// Which key in which token, by which module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Settings {
    module: PathBuf,
    token: String,
    object: String,
    pin: PinSource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PinSource {
    File(PathBuf),
    Environment(String),
}

/// The key, and a session that can use it.
pub(crate) struct Pkcs11Kek {
    settings: Pkcs11Settings,
    id: String,
    /// `None` after a failure, until the next use.
    place: Mutex<Option<Place>>,
}

struct Place {
    session: Session,
    key: ObjectHandle,
    /// Tells the key from others of its label: by its CKA_ID, or by the token's serial number where it has none.
    id: String,
}

impl Pkcs11Settings {
    pub(crate) fn parse(text: &str) -> Result<Self, KekSourceError> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let [token, object] = pairs(path, ';', ["token", "object"])?;
        let [module, pin] = pairs(query, '&', ["module-path", "pin-source"])?;
        let missing = |name: &str| KekSourceError(format!("pkcs11: `{name}` is missing"));
        let module = PathBuf::from(module.ok_or_else(|| missing("module-path"))?);
        if !module.is_absolute() {
            return Err(KekSourceError("pkcs11: module-path must begin with /".to_owned()));
        }
        let pin = match pin.ok_or_else(|| missing("pin-source"))?.split_once(':') {
            Some(("file", path)) => PinSource::File(path.into()),
            Some(("env", name)) => PinSource::Environment(name.to_owned()),
            _ => return Err(KekSourceError("pkcs11: pin-source is file:PATH or env:NAME".to_owned())),
        };
        let (token, object) = (token.ok_or_else(|| missing("token"))?, object.ok_or_else(|| missing("object"))?);
        Ok(Self { module, token, object, pin })
    }

    fn read_pin(&self) -> Result<Zeroizing<String>, KekError> {
        Ok(match &self.pin {
            PinSource::File(path) => private_text(path)?,
            PinSource::Environment(name) => {
                Zeroizing::new(std::env::var(name).map_err(|_| KekError::Unfit(format!("there is no PIN in {name}")))?)
            }
        })
    }

    /// How earlier programs named the key.
    fn label(&self) -> String {
        format!("pkcs11:{}/{}", self.token, self.object)
    }
}

impl Pkcs11Kek {
    /// Finds the key; with `make` the token makes it where it has none.
    pub(crate) fn open(settings: &Pkcs11Settings, make: bool) -> Result<Self, KekError> {
        let place = connect(settings, make)?;
        let id = place.id.clone();
        Ok(Self { settings: settings.clone(), id, place: Mutex::new(Some(place)) })
    }

    /// One use of the token at a time. After a failure that is not the data's the session is made anew, once.
    fn with<T>(&self, use_it: impl Fn(&Place) -> Result<T, Error>) -> Result<T, WrapError> {
        let unavailable = |e: &dyn core::fmt::Display| WrapError::Unavailable(e.to_string());
        let mut held = self.place.lock().map_err(|e| unavailable(&e))?;
        if let Some(place) = held.take() {
            match use_it(&place) {
                Ok(result) => {
                    *held = Some(place);
                    return Ok(result);
                }
                // The token works, so it is what it was given.
                Err(_) if works(&place) => {
                    *held = Some(place);
                    return Err(WrapError::Open);
                }
                Err(_) => {}
            }
        }
        let place = connect(&self.settings, false).map_err(|e| unavailable(&e))?;
        if place.id != self.id {
            return Err(unavailable(&format!("the token has another key now: {}, no longer {}", place.id, self.id)));
        }
        let result = use_it(&place);
        let sound = result.is_ok() || works(&place);
        match result {
            Ok(result) => {
                *held = Some(place);
                Ok(result)
            }
            Err(_) if sound => {
                *held = Some(place);
                Err(WrapError::Open)
            }
            Err(error) => Err(unavailable(&error)),
        }
    }
}

impl KeyWrap for Pkcs11Kek {
    fn id(&self) -> &str {
        &self.id
    }

    /// A key of these labels: earlier programs named no more, and a key may be in another token now.
    fn may_open(&self, name: &str) -> bool {
        name.split_once('?').map_or(name, |(name, _)| name) == self.settings.label()
    }

    fn is_remote(&self) -> bool {
        true
    }

    /// nonce[12] ‖ ciphertext ‖ tag[16].
    fn wrap(&self, secret: &[u8], context: &[u8]) -> Result<Vec<u8>, WrapError> {
        if secret.len() > MAX_SECRET {
            return Err(WrapError::Seal);
        }
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce)?;
        let sealed = self.with(|place| encrypt(place, nonce, secret, context)).map_err(|error| match error {
            WrapError::Open => WrapError::Seal,
            other => other,
        })?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    fn open(&self, wrapped: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, WrapError> {
        let (nonce, rest) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or(WrapError::Open)?;
        if rest.len() < TAG_LEN || rest.len() > MAX_SECRET + TAG_LEN {
            return Err(WrapError::Open);
        }
        self.with(|place| decrypt(place, *nonce, rest, context)).map(Zeroizing::new)
    }
}

fn encrypt(place: &Place, mut nonce: [u8; NONCE_LEN], secret: &[u8], context: &[u8]) -> Result<Vec<u8>, Error> {
    let given = nonce;
    let sealed = {
        let mechanism = Mechanism::AesGcm(GcmParams::new(&mut nonce, context, TAG_BITS.into())?);
        place.session.encrypt(&mechanism, place.key, secret)?
    };
    // A token that puts its own nonce in its place is not supported: what it sealed could not be opened.
    if nonce != given || sealed.len() != secret.len() + TAG_LEN {
        return Err(Error::InvalidValue);
    }
    Ok(sealed)
}

fn decrypt(place: &Place, mut nonce: [u8; NONCE_LEN], sealed: &[u8], context: &[u8]) -> Result<Vec<u8>, Error> {
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut nonce, context, TAG_BITS.into())?);
    place.session.decrypt(&mechanism, place.key, sealed)
}

/// Whether the token can use the key now.
fn works(place: &Place) -> bool {
    let mut nonce = [0; NONCE_LEN];
    let Ok(()) = random(&mut nonce) else { return false };
    let sealed = encrypt(place, nonce, b"probe", b"chrysalis/kek-probe/v1");
    sealed.is_ok_and(|sealed| decrypt(place, nonce, &sealed, b"chrysalis/kek-probe/v1").is_ok_and(|p| p == b"probe"))
}

fn connect(settings: &Pkcs11Settings, make: bool) -> Result<Place, KekError> {
    let unavailable = |what: &str, e: &Error| WrapError::Unavailable(format!("{what}: {e}"));
    let module = module(&settings.module)?;
    let slots = module.get_slots_with_token().map_err(|e| unavailable("the PKCS#11 slots", &e))?;
    let mut matching = slots
        .into_iter()
        .filter(|slot| module.get_token_info(*slot).is_ok_and(|token| token.label() == settings.token));
    let slot = match (matching.next(), matching.next()) {
        (Some(slot), None) => slot,
        (None, _) => return Err(WrapError::Unavailable(format!("there is no token {}", settings.token)).into()),
        (Some(_), Some(_)) => return Err(KekError::Unfit(format!("several tokens are named {}", settings.token))),
    };
    let opened = if make { module.open_rw_session(slot) } else { module.open_ro_session(slot) };
    let session = opened.map_err(|e| unavailable("the token's session", &e))?;
    log_in(&session, settings)?;
    let key = find(&session, settings, make)?;
    let id = named(&session, key, &module, slot, settings).map_err(|e| unavailable("the token's key", &e))?;
    let place = Place { session, key, id };
    if !works(&place) {
        return Err(KekError::Unfit("the token does not encrypt and decrypt by AES-GCM with it".to_owned()));
    }
    Ok(place)
}

/// Logs in. A PIN that the token refused is not tried again, or a service that asks each time would lock the token.
fn log_in(session: &Session, settings: &Pkcs11Settings) -> Result<(), KekError> {
    type Refused = BTreeMap<(PathBuf, String), Sha256Digest>;
    static REFUSED: OnceLock<Mutex<Refused>> = OnceLock::new();
    let pin = settings.read_pin()?;
    let digest = digest(&pin)?;
    let token = (settings.module.clone(), settings.token.clone());
    // Held meanwhile: of several callers with one wrong PIN one tries it.
    let refused = REFUSED.get_or_init(Mutex::default).lock();
    let mut refused = refused.map_err(|e| WrapError::Unavailable(e.to_string()))?;
    if refused.get(&token) == Some(&digest) {
        return Err(KekError::Pin("as before; it was not tried again".to_owned()));
    }
    match session.login(UserType::User, Some(&AuthPin::from(pin.as_str()))) {
        // Sessions of one process share the log-in.
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(Error::Pkcs11(
            error @ (RvError::PinIncorrect
            | RvError::PinInvalid
            | RvError::PinLenRange
            | RvError::PinExpired
            | RvError::PinLocked),
            _,
        )) => {
            refused.insert(token, digest);
            Err(KekError::Pin(error.to_string()))
        }
        Err(error) => Err(WrapError::Unavailable(format!("the token's log-in: {error}")).into()),
    }
}

/// Of a PIN, in this process alone: it has few digits.
fn digest(pin: &str) -> Result<Sha256Digest, WrapError> {
    static SALT: OnceLock<[u8; 32]> = OnceLock::new();
    let mut fresh = [0; 32];
    random(&mut fresh)?;
    Ok(Sha256Digest::of_parts(&[SALT.get_or_init(|| fresh), pin.as_bytes()]))
}

/// The key's name.
fn named(
    session: &Session,
    key: ObjectHandle,
    module: &Pkcs11,
    slot: Slot,
    settings: &Pkcs11Settings,
) -> Result<String, Error> {
    let label = settings.label();
    for attribute in session.get_attributes(key, &[AttributeType::Id])? {
        if let Attribute::Id(id) = attribute
            && !id.is_empty()
        {
            let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok(format!("{label}?id={hex}"));
        }
    }
    let token = module.get_token_info(slot)?;
    Ok(format!("{label}?serial={}", token.serial_number()))
}

/// The one key of that name, which must be of the right kind and unable to leave the token.
fn find(session: &Session, settings: &Pkcs11Settings, make: bool) -> Result<ObjectHandle, KekError> {
    let unavailable = |e: Error| WrapError::Unavailable(format!("the token's key: {e}"));
    let label = Attribute::Label(settings.object.clone().into_bytes());
    let template = [Attribute::Class(ObjectClass::SECRET_KEY), label.clone()];
    let found = session.find_objects(&template).map_err(unavailable)?;
    let key = match found.as_slice() {
        [one] => *one,
        [] if make => {
            let template = [
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
                Attribute::ValueLen(KEY_LEN.into()),
                Attribute::Id(fresh_id()?),
                label,
            ];
            session.generate_key(&Mechanism::AesKeyGen, &template).map_err(unavailable)?
        }
        [] => return Err(WrapError::Unavailable(format!("the token has no key {}", settings.object)).into()),
        _ => return Err(KekError::Unfit(format!("the token has several keys {}", settings.object))),
    };
    let wanted = [
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(KEY_LEN.into()),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
    ];
    let kinds = [AttributeType::KeyType, AttributeType::ValueLen, AttributeType::Sensitive, AttributeType::Extractable];
    let found = session.get_attributes(key, &kinds).map_err(unavailable)?;
    if wanted.iter().all(|attribute| found.contains(attribute)) {
        Ok(key)
    } else {
        Err(KekError::Unfit("it must be an AES key of 256 bits, sensitive and not extractable".to_owned()))
    }
}

/// A CKA_ID that no other key has.
fn fresh_id() -> Result<Vec<u8>, WrapError> {
    let mut id = [0; 16];
    random(&mut id)?;
    Ok(id.to_vec())
}

/// A module is initialised once in a process.
fn module(path: &Path) -> Result<Pkcs11, WrapError> {
    static MODULES: OnceLock<Mutex<BTreeMap<PathBuf, Pkcs11>>> = OnceLock::new();
    let unavailable =
        |e: &dyn core::fmt::Display| WrapError::Unavailable(format!("the PKCS#11 module {}: {e}", path.display()));
    let mut modules = MODULES.get_or_init(Mutex::default).lock().map_err(|e| unavailable(&e))?;
    if let Some(module) = modules.get(path) {
        return Ok(module.clone());
    }
    let module = Pkcs11::new(path).map_err(|e| unavailable(&e))?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(unavailable(&error)),
    }
    modules.insert(path.to_owned(), module.clone());
    Ok(module)
}

const KEY_LEN: u64 = 32;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
const TAG_BITS: u64 = 128;
