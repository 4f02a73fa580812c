// SPDX-License-Identifier: Apache-2.0
//! Goes through a case's steps.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use attacks::case::{Case, Reason};
use attacks::wire::model;
use release::Hardware;
use release_client::key_release_protocol::{ReleaseKeyPair, UnwrapErr};
use release_client::{Challenge, ClientError, Released, ServiceConnection};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tokio::runtime::Runtime;
use types::{Blake3Digest, Hex32, ModelId, Refusal};

use crate::guest::Guest;
use crate::race::race;
use crate::resume::resume;
use crate::step::{Ask, Expect, Step};
use crate::world::World;

pub(crate) fn run(case: &Case, dir: &Path) -> Result<()> {
    let mut play = Play {
        case,
        dir,
        world: World::new()?,
        runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        guest: None,
        connections: BTreeMap::new(),
        challenges: BTreeMap::new(),
        owner: String::new(),
        refused: false,
    };
    for (number, table) in case.steps.iter().enumerate() {
        let step: Step = table.clone().try_into().with_context(|| format!("step {}", number + 1))?;
        let shown = format!("step {} ({step:?})", number + 1);
        play.step(step).context(shown)?;
    }
    ensure!(play.refused == (case.attack != 0), "no step met the attack's refusal");
    Ok(())
}

struct Play<'a> {
    case: &'a Case,
    dir: &'a Path,
    world: World,
    runtime: Runtime,
    guest: Option<Guest>,
    connections: BTreeMap<String, ServiceConnection>,
    challenges: BTreeMap<String, Challenge>,
    owner: String,
    refused: bool,
}

impl Play<'_> {
    fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Serve { arguments, expect } => self.serve(&arguments, expect),
            Step::Stop { kill } => self.stop(kill),
            Step::Collateral(issue) => self.world.issue(&issue),
            Step::Pccs { down, issue } => self.world.set_pccs(down, &issue),
            Step::Release { hardware, tcb } => {
                let real = hardware.as_deref() == Some("tdx");
                self.world.publish(if real { Hardware::Tdx } else { Hardware::Simulated }, tcb.as_deref())
            }
            Step::OwnerKey {} => {
                let answer =
                    self.world.store.program().call(self.fill(&["owner", "keygen", "--out", "{dir}/owner.key"]))?;
                let owner = answer.document.get("owner").and_then(serde_json::Value::as_str);
                self.owner = owner.with_context(|| format!("{answer:?}"))?.to_owned();
                Ok(())
            }
            Step::Copy { from, to } => {
                std::fs::copy(self.placed(&from), self.placed(&to))?;
                Ok(())
            }
            Step::Guest { changes } => {
                let floor = self.world.statement.predicate.source_date_epoch;
                let service = self.world.running()?;
                let attested = self.runtime.block_on(async {
                    let mut connection = service.connect().await?;
                    Ok::<_, anyhow::Error>(connection.time(Hex32::new([9; 32]), floor).await?)
                })?;
                self.guest = Some(Guest::boot(&self.world, attested, &changes)?);
                Ok(())
            }
            Step::Ask(ask) => self.ask(&ask),
            Step::Race { streams } => self.race(streams),
            Step::Resume { challenge } => self.resume(&challenge),
            Step::Command { arguments, expect } => {
                let answer = self.world.store.program().call(self.fill(&arguments))?;
                self.meet(expect.unwrap_or(Expect::Accepted), "by the program", &answer.reasons()?)
            }
            Step::Write { file, text } => Ok(std::fs::write(self.world.file(&file), self.placed(&text))?),
            Step::Keep { path } => self.copy(&self.placed(&path), &self.world.file("kept").display().to_string()),
            Step::Restore { path } => {
                ensure!(self.world.service.is_none(), "the service runs");
                let path = self.placed(&path);
                std::fs::remove_dir_all(&path)?;
                self.copy(&self.world.file("kept").display().to_string(), &path)
            }
            Step::Space { none } => {
                let pid = i32::try_from(self.world.running()?.id())?;
                let limit = if none { Some(1) } else { None };
                let limits = Rlimit { current: limit, maximum: None };
                prlimit(Pid::from_raw(pid), Resource::Fsize, limits)?;
                Ok(())
            }
            Step::Obstruct { path, gone } => {
                let path = self.placed(&path);
                if gone {
                    std::fs::remove_dir(path)?
                } else {
                    std::fs::create_dir(path)?
                }
                Ok(())
            }
            Step::Audit { released } => {
                let answer = self.world.store.program().call(self.fill(&["audit", "verify", "--store", "{store}"]))?;
                ensure!(answer.code == 0, "{answer:?}");
                let found = answer.document.get("key_releases").and_then(serde_json::Value::as_u64);
                ensure!(found == Some(released), "{}", answer.document);
                Ok(())
            }
        }
    }

    fn serve(&mut self, arguments: &[String], expect: Option<Expect>) -> Result<()> {
        if self.world.service.is_some() {
            self.stop(false)?;
        }
        if self.world.release.is_none() {
            self.world.publish(Hardware::Simulated, None)?;
        }
        let more = self.fill(arguments);
        let from_file = !arguments.iter().any(|argument| argument == "--collateral-dir");
        let collateral: Vec<_> = from_file.then(|| self.world.file("collateral.json")).into_iter().collect();
        if expect == Some(Expect::Attack) {
            let mut all = self.fill(&["serve", "--store", "{store}", "--listen", "127.0.0.1:0"]);
            all.extend(collateral.into_iter().flat_map(|file| ["--collateral".into(), file.into_os_string()]));
            all.extend(more);
            let reasons = self.world.store.program().call(all)?.reasons()?;
            return self.meet(Expect::Attack, "at the start", &reasons);
        }
        self.world.service = Some(self.world.store.serve(&collateral, &more)?);
        Ok(())
    }

    fn stop(&mut self, kill: bool) -> Result<()> {
        self.connections.clear();
        // Their tasks end in the runtime.
        self.runtime.block_on(tokio::task::yield_now());
        let service = self.world.service.take().context("the service does not run")?;
        if !kill {
            let pid = Pid::from_raw(i32::try_from(service.id())?).context("process")?;
            kill_process(pid, Signal::TERM)?;
            ensure!(service.wait()? == Some(0), "the service did not end well");
        }
        Ok(())
    }

    fn ask(&mut self, ask: &Ask) -> Result<()> {
        let mut left = ask.again;
        loop {
            let found = self.ask_once(ask)?;
            if found.is_none() && ask.expect == Expect::Attack && left > 0 {
                left -= 1;
                std::thread::sleep(Duration::from_secs(1));
                continue;
            }
            return match found {
                _ if ask.challenge_only => Ok(()),
                None => self.meet(ask.expect, "over the wire", &[]),
                Some(reasons) => self.meet(ask.expect, "over the wire", &reasons),
            };
        }
    }

    /// The reasons of the refusal; none when a key came.
    fn ask_once(&mut self, ask: &Ask) -> Result<Option<Vec<Refusal>>> {
        let Self { world, runtime, connections, challenges, guest, .. } = self;
        let service = world.running()?;
        runtime.block_on(async {
            let name = ask.connection.clone().unwrap_or_default();
            let mut connection = match connections.remove(&name) {
                Some(connection) => connection,
                None => service.connect().await?,
            };
            let challenge = match &ask.challenge {
                Some(name) => challenges.get(name).with_context(|| format!("no challenge {name}"))?.clone(),
                None => connection.challenge().await?,
            };
            if let Some(name) = &ask.keep {
                challenges.insert(name.clone(), challenge.clone());
            }
            if !ask.challenge_only {
                let guest = guest.as_ref().context("no guest booted")?;
                let answered = match &ask.evidence_for {
                    Some(name) => challenges.get(name).with_context(|| format!("no challenge {name}"))?,
                    None => &challenge,
                };
                let exporter = if ask.no_exporter { [0; 32] } else { *answered.binding() };
                let key = ReleaseKeyPair::generate(&mut UnwrapErr(getrandom::SysRng));
                let evidence = guest.evidence(answered, &exporter, key.public(), &ask.before, &ask.after)?;
                let released = connection.release(challenge, &asked(ask)?, evidence, key).await;
                if !name.is_empty() {
                    connections.insert(name, connection);
                }
                return reasons(released);
            }
            if !name.is_empty() {
                connections.insert(name, connection);
            }
            Ok(None)
        })
    }

    fn race(&mut self, streams: usize) -> Result<()> {
        let Self { world, runtime, guest, .. } = self;
        let guest = guest.as_ref().context("no guest booted")?;
        let all = runtime.block_on(race(world.running()?, world.store.pin(), guest, streams))?;
        let lost: Vec<_> = all.into_iter().flatten().collect();
        ensure!(lost.len() + 1 == streams, "{} of {streams} lost the race", lost.len());
        for refusals in lost {
            self.meet(Expect::Attack, "over the wire", &refusals)?;
        }
        Ok(())
    }

    fn resume(&mut self, challenge: &str) -> Result<()> {
        let Self { world, guest, challenges, .. } = self;
        let guest = guest.as_ref().context("no guest booted")?;
        let challenge = challenges.get(challenge).with_context(|| format!("no challenge {challenge}"))?;
        let refusals = resume(world.running()?.address(), guest, challenge)?;
        self.meet(Expect::Attack, "over the wire", &refusals)
    }

    fn meet(&mut self, expect: Expect, how: &str, refusals: &[Refusal]) -> Result<()> {
        if expect == Expect::Refused {
            ensure!(!refusals.is_empty(), "nothing was refused");
            return Ok(());
        }
        let none: &[Reason] = &[];
        let expected = match expect {
            Expect::Accepted | Expect::Refused => none,
            Expect::Attack => {
                self.refused = true;
                ensure!(!self.case.expected.is_empty(), "the case expects no refusal");
                &self.case.expected
            }
        };
        self.case.compare(self.dir, how, expected, refusals)
    }

    fn copy(&self, from: &str, to: &str) -> Result<()> {
        ensure!(Command::new("cp").args(["-a", from, to]).status()?.success(), "cp {from} {to}");
        Ok(())
    }

    fn fill<S: AsRef<str>>(&self, arguments: &[S]) -> Vec<OsString> {
        arguments.iter().map(|argument| self.placed(argument.as_ref()).into()).collect()
    }

    fn placed(&self, text: &str) -> String {
        let path = |path: &Path| path.display().to_string();
        let platform = types::Sha256Digest::of_parts(&[b"chrysalis/platform/v1", &self.world.platform.ppid()]);
        let values = [
            ("{store}", path(&self.world.store.path())),
            ("{dir}", path(self.world.store.dir())),
            ("{pin}", self.world.store.pin().to_string()),
            ("{model}", model().map(|model| model.to_string()).unwrap_or_default()),
            ("{release}", self.world.release.clone().unwrap_or_default()),
            ("{platform}", platform.to_string()),
            ("{service}", self.world.service.as_ref().map(|s| s.address().to_string()).unwrap_or_default()),
            ("{pccs}", self.world.pccs.as_ref().map(crate::fake::Pccs::url).unwrap_or_default()),
            ("{owner}", self.owner.clone()),
        ];
        values.into_iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, &value))
    }
}

fn asked(ask: &Ask) -> Result<ModelId> {
    Ok(if ask.other_model { ModelId::new("model", "1", Blake3Digest::of(b"another"))? } else { model()? })
}

/// A key that comes must be the one that was imported.
pub(crate) fn reasons(result: Result<Released, ClientError>) -> Result<Option<Vec<Refusal>>> {
    match result {
        Ok(released) => {
            ensure!(*released.key == [7; 32], "another key than was imported");
            Ok(None)
        }
        Err(ClientError::Refused(reasons)) => Ok(Some(reasons)),
        Err(other) => bail!("no answer: {other}"),
    }
}
