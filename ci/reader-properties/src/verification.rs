// SPDX-License-Identifier: Apache-2.0
//! Verification of quotes: the warm path says what `dcap-qvl` says, whatever was changed before and after signing.

use std::fmt::Debug;
use std::sync::OnceLock;

use serde_json::{Value, json};
use tdx_sim::verdict::{lenient, told};
use tdx_sim::{QuoteVersion, SimulatedPlatform, TdReport};
use tdx_verify::{Collateral, KnownPlatforms, PlatformPolicy, TrustAnchors};

/// The bytes are changes of five bytes each: which, where, to what. They make one quote and one collateral of a platform
/// that is known already, and both paths judge them. Accepted is what a lenient policy accepts.
pub fn verification(bytes: &[u8]) -> bool {
    let changes: Vec<Change> = bytes.chunks_exact(5).take(MAX_CHANGES).filter_map(Change::read).collect();
    let world = world();
    let collateral = world.collateral(&changes);
    let Some(collateral) = collateral.as_ref().or(world.good.as_ref()) else { return false };
    let (known, nothing) = (KnownPlatforms::new(4), KnownPlatforms::new(0));
    let list = std::slice::from_ref(collateral);
    for prime in &world.primes {
        let _ = known.examine(prime, list, &world.anchors, NOW);
    }
    let Some(quote) = world.quote(&changes) else { return false };
    let now = changes.iter().fold(NOW, |now, change| if change.kind == Kind::Time { change.time() } else { now });
    let judge = |known: &KnownPlatforms| {
        let examined = known.examine(&quote, list, &world.anchors, now);
        [PlatformPolicy::default(), lenient()]
            .map(|policy| told(&examined.as_ref().map_err(Clone::clone).and_then(|examined| examined.judge(&policy))))
    };
    let expected = judge(&nothing);
    // Twice: what the first one leaves behind must change nothing.
    assert_eq!(judge(&known), expected, "the warm path says something else");
    assert_eq!(judge(&known), expected, "the warm path says something else the second time");
    expected[1].is_ok()
}

/// One change.
struct Change {
    kind: Kind,
    which: u8,
    place: u16,
    value: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A byte that the attestation key signs.
    Signed,
    /// A byte of the quoting enclave's report, which the PCK signs.
    Enclave,
    /// A byte of the finished quote.
    Quote,
    /// A TCB level.
    Level,
    /// A TDX module's identity.
    Module,
    /// The quoting enclave's identity.
    Identity,
    /// The time.
    Time,
    /// Version 5, or its extended body.
    Version,
}

impl Change {
    fn read(bytes: &[u8]) -> Option<Self> {
        let [kind, which, low, high, value] = *bytes.first_chunk()?;
        let kind = match kind % 8 {
            0 => Kind::Signed,
            1 => Kind::Enclave,
            2 => Kind::Quote,
            3 => Kind::Level,
            4 => Kind::Module,
            5 => Kind::Identity,
            6 => Kind::Time,
            _ => Kind::Version,
        };
        Some(Self { kind, which, place: u16::from_le_bytes([low, high]), value })
    }

    /// Up to 45 days before and after, and to the second around what is issued and ends.
    fn time(&self) -> u64 {
        let edge = [NOW, NOW - 3600, NOW + MONTH, NOW - 45 * 86_400][usize::from(self.which % 4)];
        edge + u64::from(self.place) * 60 * u64::from(self.which / 128) + u64::from(self.value) - 128
    }

    fn set(&self, bytes: &mut [u8]) {
        let place = usize::from(self.place) % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(place) {
            *byte = self.value;
        }
    }
}

/// A platform, made once for each process: no input depends on its keys.
struct World {
    platform: SimulatedPlatform,
    anchors: TrustAnchors,
    good: Option<Collateral>,
    /// Quotes by which the platform becomes known: as it is, and with higher security versions of its module.
    primes: Vec<Vec<u8>>,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let platform = SimulatedPlatform::generate(NOW).expect("a platform");
        let anchors = TrustAnchors::custom(platform.root_der().to_vec());
        let higher = |quote: &mut Vec<u8>| quote[48..64].copy_from_slice(&HIGHER);
        let primes = vec![
            platform.quote(&TdReport::example(), QuoteVersion::V4, None).expect("a quote"),
            platform.quote_changed(&TdReport::example(), QuoteVersion::V4, higher, |_| ()).expect("a quote"),
        ];
        let mut world = World { platform, anchors, good: None, primes };
        world.good = world.collateral_of(&[]);
        world
    })
}

impl World {
    fn quote(&self, changes: &[Change]) -> Option<Vec<u8>> {
        let of = |kind| changes.iter().filter(move |change| change.kind == kind);
        let version = of(Kind::Version).next().map(|change| change.which % 2 == 0);
        let signed = |bytes: &mut Vec<u8>| {
            if version == Some(true) {
                // Type and size of the extended body, and its further fields.
                bytes[48..54].copy_from_slice(&[4, 0, 0x75, 3, 0, 0]);
                bytes.extend([0; 885 - 648]);
            }
            of(Kind::Signed).for_each(|change| change.set(bytes));
        };
        let enclave = |bytes: &mut [u8]| of(Kind::Enclave).for_each(|change| change.set(bytes));
        let number = if version.is_some() { QuoteVersion::V5 } else { QuoteVersion::V4 };
        let mut quote = self.platform.quote_changed(&TdReport::example(), number, signed, enclave).ok()?;
        of(Kind::Quote).for_each(|change| change.set(&mut quote));
        Some(quote)
    }

    /// Changed collateral; nothing where it is not changed.
    fn collateral(&self, changes: &[Change]) -> Option<Collateral> {
        let kinds = [Kind::Level, Kind::Module, Kind::Identity];
        changes.iter().any(|change| kinds.contains(&change.kind)).then(|| self.collateral_of(changes)).flatten()
    }

    fn collateral_of(&self, changes: &[Change]) -> Option<Collateral> {
        let changed = self.platform.collateral_changed(NOW, |info, identity| {
            for change in changes {
                match change.kind {
                    Kind::Level => level(change, info),
                    Kind::Module => module(change, info),
                    Kind::Identity => enclave_identity(change, identity),
                    _ => {}
                }
            }
        });
        Collateral::from_json(changed.ok()?.to_json().as_bytes()).ok()
    }
}

fn level(change: &Change, info: &mut Value) {
    let Change { which, place, value, .. } = change;
    let place = usize::from(*place);
    let levels = &mut info["tcbLevels"];
    if *which >= 0xf0 {
        // Another level below or above, a copy of the first.
        let copy = levels[0].clone();
        if let Some(list) = levels.as_array_mut().filter(|list| list.len() < 6) {
            list.insert(place % (list.len() + 1), copy);
        }
        return;
    }
    let count = levels.as_array().map_or(1, Vec::len);
    let level = &mut levels[place / 64 % count];
    match which % 7 {
        0 => level["tcbStatus"] = json!(STATUSES[usize::from(*value) % STATUSES.len()]),
        1 => put(level, &format!("/tcb/sgxtcbcomponents/{}/svn", place % 16), json!(value)),
        2 => put(level, &format!("/tcb/tdxtcbcomponents/{}/svn", place % 16), json!(value)),
        3 => level["tcb"]["pcesvn"] = json!(value),
        4 => level["tcbDate"] = json!(DATES[usize::from(*value) % DATES.len()]),
        5 => level["advisoryIDs"] = json!([format!("X-{}", value % 4), format!("X-{}", value / 4 % 4)]),
        _ => drop(level["tcb"]["tdxtcbcomponents"].as_array_mut().map(Vec::pop)),
    }
}

fn module(change: &Change, info: &mut Value) {
    let Change { which, place, value, .. } = change;
    let place = usize::from(*place);
    if *which >= 0xf0 {
        let copy = info["tdxModuleIdentities"][0].clone();
        if let Some(list) = info["tdxModuleIdentities"].as_array_mut().filter(|list| list.len() < 4) {
            list.insert(place % (list.len() + 1), copy);
        }
        return;
    }
    let count = info["tdxModuleIdentities"].as_array().map_or(1, Vec::len);
    let module = match which / 16 % 4 {
        0 => &mut info["tdxModule"],
        _ => &mut info["tdxModuleIdentities"][place / 64 % count],
    };
    let status = || json!(STATUSES[usize::from(*value) % STATUSES.len()]);
    let level = place % 2;
    match which % 10 {
        0 => module["id"] = json!(format!("TDX_{value:02x}")),
        1 => module["id"] = json!(format!("tdx_{value:02X}")),
        2 => hex_byte(&mut module["mrsigner"], place, *value),
        3 => hex_byte(&mut module["attributes"], place, *value),
        4 => hex_byte(&mut module["attributesMask"], place, *value),
        5 => put(module, &format!("/tcbLevels/{level}/tcb/isvsvn"), json!(value)),
        6 => put(module, &format!("/tcbLevels/{level}/tcbStatus"), status()),
        7 => {
            put(module, &format!("/tcbLevels/{level}/tcbDate"), json!(DATES[usize::from(*value) % DATES.len()]));
        }
        8 => module["tcbLevels"] = json!([]),
        _ => {
            if let Some(levels) = module["tcbLevels"].as_array_mut().filter(|levels| levels.len() < 4) {
                levels.extend(levels.first().cloned());
            }
        }
    }
}

fn enclave_identity(change: &Change, identity: &mut Value) {
    let Change { which, place, value, .. } = change;
    let place = usize::from(*place);
    match which % 9 {
        0 => hex_byte(&mut identity["miscselect"], place, *value),
        1 => hex_byte(&mut identity["miscselectMask"], place, *value),
        2 => hex_byte(&mut identity["attributes"], place, *value),
        3 => hex_byte(&mut identity["attributesMask"], place, *value),
        4 => hex_byte(&mut identity["mrsigner"], place, *value),
        5 => identity["isvprodid"] = json!(value),
        6 => identity["tcbLevels"][place % 2]["tcb"]["isvsvn"] = json!(value),
        7 => identity["tcbLevels"][place % 2]["tcbStatus"] = json!(STATUSES[usize::from(*value) % STATUSES.len()]),
        _ => identity["tcbEvaluationDataNumber"] = json!(value),
    }
}

/// Sets what is there.
fn put(value: &mut Value, pointer: &str, new: Value) {
    if let Some(place) = value.pointer_mut(pointer) {
        *place = new;
    }
}

/// Sets one byte of hexadecimal text.
fn hex_byte(field: &mut Value, place: usize, value: u8) {
    let Some(text) = field.as_str() else { return };
    let at = place % (text.len() / 2).max(1) * 2;
    let Some((before, rest)) = text.split_at_checked(at) else { return };
    *field = json!(format!("{before}{value:02X}{}", rest.get(2..).unwrap_or_default()));
}

const NOW: u64 = 1_800_000_000;
/// How long the simulator's collateral lasts.
const MONTH: u64 = 30 * 86_400;
const MAX_CHANGES: usize = 24;
/// Module ISVSVN 255 of module version 1, everything else at its highest.
const HIGHER: [u8; 16] = [255, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255];
const STATUSES: [&str; 10] = [
    "UpToDate",
    "OutOfDate",
    "Revoked",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
    "Unheard",
];
const DATES: [&str; 7] = [
    "2024-03-13T00:00:00Z",
    "2025-05-14T00:00:00Z",
    "2025-05-14T02:00:00+02:00",
    "2025-05-14t00:00:00z",
    "2016-12-31T23:59:60Z",
    "1969-12-31T23:59:59Z",
    "2025-05-14",
];
