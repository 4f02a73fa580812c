// SPDX-License-Identifier: Apache-2.0
//! The small vocabulary in which cases are written.

use serde::Deserialize;

/// One step. `{store}`, `{dir}`, `{service}`, `{pin}`, `{model}`, `{release}`, `{platform}`, `{root}` and `{pccs}` in
/// arguments stand for what they name.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Step {
    /// Starts the service, again where it runs. Collateral comes from the world's file unless the arguments say from where.
    Serve {
        #[serde(default)]
        arguments: Vec<String>,
        /// `attack`: it refuses to start.
        #[serde(default)]
        expect: Option<Expect>,
    },
    /// Ends the service: asked to (SIGTERM), or killed.
    Stop {
        #[serde(default)]
        kill: bool,
    },
    /// Makes other collateral; a running service goes on with what it read.
    Collateral(Issue),
    /// Has the PCCS answer with other collateral, or not at all; starts it the first time.
    Pccs {
        #[serde(default)]
        down: bool,
        #[serde(flatten)]
        issue: Issue,
    },
    /// Publishes the guest's release and imports it into the store; without this step one is when the service starts.
    Release {
        /// `tdx`, or `simulated` as otherwise.
        #[serde(default)]
        hardware: Option<String>,
        /// A status that it accepts beside those of every release.
        #[serde(default)]
        tcb: Option<String>,
    },
    /// Boots a guest up to the moment of key release, in place of the one before.
    Guest {
        #[serde(default)]
        changes: Vec<Change>,
    },
    /// Asks for a key.
    Ask(Box<Ask>),
    /// Redeems one challenge on several streams of its own connection (HTTP/2) at once: exactly one gets the key, all
    /// others meet the attack's refusal.
    Race { streams: usize },
    /// Offers tickets of another server and early data on a new connection, which must be taken by a whole handshake that
    /// hands out none; then redeems a challenge there that an earlier step kept, with evidence for its own connection.
    Resume { challenge: String },
    /// Calls the program.
    Command {
        arguments: Vec<String>,
        #[serde(default)]
        expect: Option<Expect>,
    },
    /// Makes the key of a model's owner: `{dir}/owner.key`, and `{owner}` its public half.
    OwnerKey {},
    /// Copies a file.
    Copy { from: String, to: String },
    /// Writes a file into `{dir}`.
    Write { file: String, text: String },
    /// Copies the store, or a part of it, aside.
    Keep { path: String },
    /// Puts the copy in its place; the service must not run.
    Restore { path: String },
    /// Takes all space from the running service (writes fail beyond a file's present size), or gives it back.
    Space { none: bool },
    /// Puts a directory where a file would be written, or takes it away.
    Obstruct {
        path: String,
        #[serde(default)]
        gone: bool,
    },
    /// The audit log holds together and has this many releases of keys.
    Audit { released: u64 },
}

/// Collateral that is issued now.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Issue {
    #[serde(default)]
    pub(crate) fault: Option<String>,
    /// `tcbEvaluationDataNumber`.
    #[serde(default)]
    pub(crate) number: Option<u32>,
    /// How long it is valid.
    #[serde(default)]
    pub(crate) seconds: Option<u64>,
}

/// What a step must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Expect {
    /// A key, or exit code 0.
    Accepted,
    /// The case's refusal.
    Attack,
    /// Some other refusal, which only prepares the attack.
    Refused,
}

/// A request for a key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ask {
    pub(crate) expect: Expect,
    /// Which connection; a new one by this name where there is none.
    #[serde(default)]
    pub(crate) connection: Option<String>,
    /// A challenge that an earlier step kept; a new one otherwise.
    #[serde(default)]
    pub(crate) challenge: Option<String>,
    /// Keeps the challenge by this name.
    #[serde(default)]
    pub(crate) keep: Option<String>,
    /// The evidence answers this kept challenge instead.
    #[serde(default)]
    pub(crate) evidence_for: Option<String>,
    /// Only takes the challenge, and asks for no key.
    #[serde(default)]
    pub(crate) challenge_only: bool,
    /// Asks for the key of another model.
    #[serde(default)]
    pub(crate) other_model: bool,
    /// The exporter in the evidence is all zeros.
    #[serde(default)]
    pub(crate) no_exporter: bool,
    /// Changes of the evidence before its quote is made.
    #[serde(default)]
    pub(crate) before: Vec<Change>,
    /// Changes of the evidence that its quote does not cover.
    #[serde(default)]
    pub(crate) after: Vec<Change>,
    /// Asks again each second until the answer is another than a key, at most this often.
    #[serde(default)]
    pub(crate) again: u32,
}

/// A change of a guest or of its evidence, by name.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Change {
    /// One bit of a register that the launch made.
    Flip(String),
    /// A register is zero, or not.
    Zero(String),
    /// What tdx-sim can make wrong with a quote.
    Fault(String),
    /// Version of the quotes.
    Version(u8),
    /// vCPUs of the configuration, not of the launch.
    Vcpus(u8),
    /// Memory of the configuration, not of the launch.
    MemoryMib(u32),
    /// The configuration names another model.
    OtherModel,
    /// The configuration names another service.
    OtherService,
    /// The evidence shows another configuration than MRCONFIGID's.
    OtherConfiguration,
    /// How the guest got its time.
    Time(GuestTime),
    /// What is wrong with its events.
    Events(Events),
    /// A key for the release that nobody named.
    HpkeKey,
    /// No key for the release.
    NoHpkeKey,
    /// The TLS key of another guest.
    Spki,
    /// The instance key of another guest.
    InstanceKey,
    /// Another role in the evidence.
    Role,
    /// Evidence for a connection, not for a key.
    KindTls,
    /// Size of the freshness tree.
    TreeSize(u64),
    /// The root of a tree of two, with the challenge's leaf as one of them.
    RootOfTwo,
    /// The challenge itself in place of a leaf.
    RootIsChallenge,
    /// The host's own quote of another guest on the same platform.
    OtherGuestsQuote,
}

/// How a guest got its time.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum GuestTime {
    /// None was signed.
    Missing,
    /// Signed by a key of the host's.
    OtherKey,
    /// Signed by the service, then moved ahead by a year.
    Moved,
    /// Signed two hours ago: the guest's clock stood still since.
    Stale,
    /// Signed by the service years back, before the floor.
    BeforeFloor,
    /// Signed by the service years ahead.
    Ahead,
    /// The floor of another image: built years before.
    OldFloor,
}

/// What is wrong with a boot's events.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Events {
    /// Two in another order.
    Reordered,
    /// One is missing.
    Missing,
    /// One is there twice.
    Duplicated,
    /// The list is good, the register has two in another order.
    ReorderedInRegister,
    /// The list is good, the register lacks one.
    MissingInRegister,
    /// The list is good, the register has one twice.
    DuplicatedInRegister,
    /// `keys` before its time.
    Early,
    /// Keys were closed.
    Closed,
    /// Keys were closed; the list does not say so.
    ClosedHidden,
}
