// SPDX-License-Identifier: Apache-2.0
//! Whom guests run as. A daemon that is root, because it binds GPUs, runs keepers, fronts and with them QEMU as a user
//! that has no right but to its guests' files; QEMU never runs as root with a trust domain.
//!
//! Directories in which both write belong to root, with the user's group and the sticky bit: the user makes files there
//! and cannot exchange those that root made. Root opens nothing there through a link.

use std::fs::{self, Metadata, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::unistd::{User, geteuid, getgrouplist};
use tokio::process::Command;
use types::Refusal;

use crate::files;

/// Whom guests run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Account {
    /// The user of this process.
    Own,
    /// Another, by root.
    Other {
        /// Its name.
        name: String,
        /// Its number.
        uid: u32,
        /// Its first group.
        gid: u32,
        /// All of its groups.
        groups: Vec<u32>,
    },
}

/// What a process of the account may do beyond its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extra {
    /// Nothing.
    None,
    /// Listen on ports below 1024.
    LowPorts,
}

impl Account {
    /// The account for a daemon: `wanted`, or what fits this process. `rehearsal`: guests are emulated on simulated
    /// hardware, and may run as root.
    ///
    /// # Errors
    /// `user_not_switchable`, `user_unknown`, `guest_as_root`.
    pub(crate) fn of(wanted: Option<&str>, rehearsal: bool) -> Result<Self, Refusal> {
        let own = geteuid();
        let name = match wanted {
            None if !own.is_root() || rehearsal => return Ok(Self::Own),
            None => DEFAULT,
            Some(name) => name,
        };
        let refuse = |code: &str, detail: String, fix: &str| Refusal::new(code, FIELD, detail, fix);
        let Ok(Some(user)) = User::from_name(name) else {
            let fix = "make it (`useradd --system NAME`; the Debian package makes chrysalis), or name another";
            return Err(refuse("user_unknown", format!("there is no user {name}"), fix));
        };
        if user.uid == own && (rehearsal || !own.is_root()) {
            return Ok(Self::Own);
        }
        if user.uid.is_root() {
            let fix = "leave agent.user out for chrysalis, or name a user that has nothing else";
            return Err(refuse("guest_as_root", "QEMU does not run as root".to_owned(), fix));
        }
        if !own.is_root() {
            let detail = format!("this process is not root and cannot run guests as {name}");
            return Err(refuse("user_not_switchable", detail, "leave agent.user out, or start the agent as root"));
        }
        let groups = std::ffi::CString::new(name).ok().and_then(|name| getgrouplist(&name, user.gid).ok());
        let groups = groups.unwrap_or_default().into_iter().map(nix::unistd::Gid::as_raw).collect();
        Ok(Self::Other { name: name.to_owned(), uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups })
    }

    /// Its number: the owner of all that guests' processes make.
    pub(crate) fn uid(&self) -> u32 {
        match self {
            Self::Own => geteuid().as_raw(),
            Self::Other { uid, .. } => *uid,
        }
    }

    /// Refuses to run a guest in this very process's name where that is root.
    ///
    /// # Errors
    /// `guest_as_root`.
    pub(crate) fn refuse_root(rehearsal: bool) -> Result<(), Refusal> {
        if rehearsal || !geteuid().is_root() {
            return Ok(());
        }
        let fix = "run it as a user of the group kvm: `sudo -u chrysalis host-agent …`, or User= in the unit";
        Err(Refusal::new("guest_as_root", "user", "QEMU does not run as root", fix))
    }

    /// `program` in a session of its own, in the account's name, with none of root's capabilities and no way to get any. It
    /// enters a control group first, through the file `entrance`, still as this process's user.
    pub(crate) fn command(&self, program: &Path, extra: Extra, entrance: Option<&Path>) -> Command {
        let mut command = Command::new("setsid");
        if let Some(entrance) = entrance {
            command = Command::new("sh");
            command.args(["-c", "echo 0 > \"$0\" && exec \"$@\""]).arg(entrance).arg("setsid");
        }
        match self {
            Self::Own => {}
            Self::Other { uid, gid, name, .. } => {
                command.arg("setpriv").args([
                    "--reuid",
                    &uid.to_string(),
                    "--regid",
                    &gid.to_string(),
                    "--init-groups",
                ]);
                let kept = if extra == Extra::LowPorts { "-all,+net_bind_service" } else { "-all" };
                for set in ["inh", "ambient", "bounding"] {
                    command.arg(format!("--{set}-{}={kept}", if set == "bounding" { "set" } else { "caps" }));
                }
                command.args(["--no-new-privs", "--"]);
                command.env("HOME", "/nonexistent").env("USER", name).env("LOGNAME", name);
            }
        }
        command.arg(program);
        command
    }

    /// Makes a directory that this process and the account share, and nobody else.
    ///
    /// # Errors
    /// It cannot be made, or is not a directory of this process's user.
    pub(crate) fn directory(&self, path: &Path) -> anyhow::Result<()> {
        files::private_directory(path)?;
        self.share(path, 0o1770)
    }

    /// Lets the account pass through a directory of this process's, without seeing what is in it.
    pub(crate) fn lets_enter(&self, path: &Path) -> anyhow::Result<()> {
        self.share(path, 0o710)
    }

    /// Lets the account read the files of a directory, and look into it.
    pub(crate) fn lets_read_all(&self, directory: &Path) -> anyhow::Result<()> {
        if *self == Self::Own {
            return Ok(());
        }
        self.share(directory, 0o750)?;
        let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
        entries.flatten().try_for_each(|entry| self.lets_read(&entry.path()))
    }

    /// Lets the account read a file of this process's, if it is there.
    pub(crate) fn lets_read(&self, path: &Path) -> anyhow::Result<()> {
        if path.symlink_metadata().is_ok() { self.share(path, 0o640) } else { Ok(()) }
    }

    /// The first directory on the way to `path` that the account cannot pass.
    pub(crate) fn stopped_at(&self, path: &Path) -> Option<PathBuf> {
        let Self::Other { .. } = self else { return None };
        let mut ways: Vec<&Path> = path.ancestors().collect();
        ways.reverse();
        let closed = |way: &&Path| !fs::metadata(way).is_ok_and(|metadata| self.may(&metadata, 0o1));
        ways.into_iter().find(closed).map(Path::to_owned)
    }

    /// Lets the account open a device node that is nobody's but root's. False if somebody else's group has it.
    pub(crate) fn lets_open(&self, node: &Path) -> anyhow::Result<bool> {
        let Self::Other { gid, .. } = self else { return Ok(true) };
        let metadata = fs::metadata(node).with_context(|| node.display().to_string())?;
        if self.may(&metadata, 0o6) {
            return Ok(true);
        }
        if metadata.gid() != 0 {
            return Ok(false);
        }
        chown(node, None, Some(*gid)).with_context(|| node.display().to_string())?;
        fs::set_permissions(node, Permissions::from_mode(metadata.mode() & 0o777 | 0o660))?;
        Ok(true)
    }

    /// Lets processes of the account that are started from now on lock as much memory as VFIO asks for; root needs no leave.
    pub(crate) fn locks_memory(&self) {
        if *self == Self::Own {
            return;
        }
        if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
            tracing::warn!("guests' locked memory stays limited (LimitMEMLOCK= in the unit): {error}");
        }
    }

    /// Whether the account has these rights (one octal digit): by owner, group or as anybody, the first that fits
    /// (path_resolution(7)).
    fn may(&self, metadata: &Metadata, rights: u32) -> bool {
        let Self::Other { uid, groups, .. } = self else { return true };
        let place = match () {
            () if metadata.uid() == *uid => 6,
            () if groups.contains(&metadata.gid()) => 3,
            () => 0,
        };
        metadata.mode() >> place & rights == rights
    }

    fn share(&self, path: &Path, mode: u32) -> anyhow::Result<()> {
        let Self::Other { gid, .. } = self else { return Ok(()) };
        let shown = || path.display().to_string();
        let metadata = path.symlink_metadata().with_context(shown)?;
        let ours = metadata.uid() == geteuid().as_raw() && !metadata.is_symlink();
        anyhow::ensure!(ours, "{} is not root's own: remove it", shown());
        chown(path, None, Some(*gid)).with_context(shown)?;
        fs::set_permissions(path, Permissions::from_mode(mode)).with_context(shown)
    }
}

/// The user that the Debian package makes.
const DEFAULT: &str = "chrysalis";
const FIELD: &str = "agent.user";

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> Option<Account> {
        if !geteuid().is_root() {
            println!("SKIPPED: only root gives files to another user");
            return None;
        }
        Some(Account::of(Some("nobody"), false).unwrap())
    }

    #[test]
    fn root_is_nobodys_account() {
        let code = |wanted, rehearsal| Account::of(wanted, rehearsal).map_err(|refusal| refusal.code);
        assert_eq!(code(Some("no such user"), true), Err("user_unknown".to_owned()));
        let root = geteuid().is_root();
        assert_eq!(code(Some("root"), false), Err("guest_as_root".to_owned()));
        assert_eq!(code(None, true), Ok(Account::Own));
        assert_eq!(Account::refuse_root(true), Ok(()));
        assert_eq!(Account::refuse_root(false).is_err(), root);
        if root {
            assert_eq!(code(Some("root"), true), Ok(Account::Own));
            assert!(matches!(code(Some("nobody"), true), Ok(Account::Other { .. })));
        } else {
            assert_eq!(code(Some("nobody"), true), Err("user_not_switchable".to_owned()));
        }
    }

    #[test]
    fn what_is_shared_is_roots_and_no_link() {
        let Some(account) = nobody() else { return };
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        account.directory(&at("both")).unwrap();
        let metadata = at("both").metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (0, 65534, 0o1770));
        fs::write(at("both/file"), "x").unwrap();
        account.lets_read(&at("both/file")).unwrap();
        assert_eq!(at("both/file").metadata().unwrap().mode() & 0o7777, 0o640);
        account.lets_read(&at("both/missing")).unwrap();
        // What the user put there before.
        std::os::unix::fs::symlink("/etc", at("link")).unwrap();
        assert!(account.directory(&at("link")).is_err());
        assert_eq!(Path::new("/etc").metadata().unwrap().gid(), 0);
        fs::create_dir(at("theirs")).unwrap();
        chown(at("theirs"), Some(65534), None).unwrap();
        assert!(account.directory(&at("theirs")).is_err());
    }

    #[test]
    fn the_way_to_a_directory_is_looked_at() {
        let Some(account) = nobody() else { return };
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        set(directory.path(), 0o700);
        assert_eq!(account.stopped_at(&inner), Some(directory.path().to_owned()));
        set(directory.path(), 0o711);
        set(&inner, 0o700);
        assert_eq!(account.stopped_at(&inner), Some(inner.clone()));
        account.lets_enter(&inner).unwrap();
        assert_eq!(account.stopped_at(&inner), None);
        assert_eq!(Account::Own.stopped_at(&inner), None);
    }

    #[test]
    fn device_nodes_of_root_alone_are_opened_and_no_others() {
        let Some(account) = nobody() else { return };
        let directory = tempfile::tempdir().unwrap();
        let node = |name: &str, gid, mode| {
            let path = directory.path().join(name);
            fs::write(&path, "").unwrap();
            chown(&path, None, Some(gid)).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let opened = account.lets_open(&path).unwrap();
            let metadata = path.metadata().unwrap();
            (opened, metadata.gid(), metadata.mode() & 0o777)
        };
        assert_eq!(node("root", 0, 0o600), (true, 65534, 0o660));
        assert_eq!(node("open", 0, 0o666), (true, 0, 0o666));
        assert_eq!(node("group", 65534, 0o660), (true, 65534, 0o660));
        assert_eq!(node("strangers", 12345, 0o660), (false, 12345, 0o660));
        assert!(account.lets_open(&directory.path().join("missing")).is_err());
    }
}
