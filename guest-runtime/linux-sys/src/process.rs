// SPDX-License-Identifier: Apache-2.0
//! Starts the guest's processes with as little as they need, and reaps them.
#![allow(unsafe_code, reason = "what a child does between fork and exec is outside of Rust's rules")]

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::Signal,
        stat::{Mode, umask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid, setgid, setgroups, setuid},
};

use crate::{
    SysError, landlock,
    seccomp::{Compiled, Filter},
};

/// A process to start. Its environment is empty, its standard streams are `/dev/null`.
#[derive(Debug)]
pub struct Program<'a> {
    /// Absolute path.
    pub path: &'a str,
    /// Arguments after the name.
    pub arguments: Vec<OsString>,
    /// User that it runs as.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Groups that it is in besides.
    pub groups: Vec<u32>,
    /// Descriptors it inherits: the one at index *i* gets number 3 + *i*. All others are closed on exec.
    pub descriptors: Vec<OwnedFd>,
    /// Whether it gets a network of its own, without any interface.
    pub without_network: bool,
    /// Whether it may lock all of its memory (otherwise none).
    pub locks_memory: bool,
    /// The files and ports it may reach beside its own program.
    pub reach: landlock::Reach,
    /// The system calls it may make, for a program that does not confine itself. It must allow `execve`, by which the program
    /// begins: which programs that starts, `reach` decides.
    pub filter: Option<Filter>,
    /// Whether standard error stays that of this process (development images only).
    pub inherits_stderr: bool,
}

/// Starts a program and gives its process id. What it creates is closed to all but its user and group.
///
/// # Errors
/// [`SysError`] when any step fails; then nothing runs.
pub fn start(program: Program<'_>) -> Result<i32, SysError> {
    start_with(program, false)
}

/// As [`start`], but the program keeps the right of an administrator (`CAP_SYS_ADMIN`) beside its user, and no other one. It must
/// confine itself: with that right alone, seccomp and Landlock are what holds it.
///
/// # Errors
/// As [`start`].
pub fn start_administrator(program: Program<'_>) -> Result<i32, SysError> {
    start_with(program, true)
}

fn start_with(program: Program<'_>, administrator: bool) -> Result<i32, SysError> {
    let Program {
        path,
        arguments,
        uid,
        gid,
        groups,
        descriptors,
        without_network,
        locks_memory,
        reach,
        filter,
        inherits_stderr,
    } = program;
    let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
    let sources = out_of_the_way(&descriptors)?;
    let raw: Vec<RawFd> = sources.iter().map(|fd| fd.as_raw_fd()).collect();
    let first_other = libc::c_uint::try_from(raw.len().saturating_add(3)).unwrap_or(3);
    let mut reach = reach;
    reach.paths.push((path.into(), landlock::Access::Execute));
    let ruleset = reach.ruleset()?;
    let rules = ruleset.as_raw_fd();
    let filter = filter.map(|filter| filter.compile()).transpose();
    let filter = filter.map_err(|error| SysError { what: "compile a filter", source: io::Error::other(error) })?;
    let memory = if locks_memory { libc::RLIM_INFINITY } else { 0 };
    let mut command = Command::new(path);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
    if !inherits_stderr {
        command.stderr(Stdio::null());
    }
    let prepare = move || -> io::Result<()> {
        for (number, source) in (3..).zip(&raw) {
            // SAFETY: plain numbers; the sources stay open in the parent until the child has started.
            if unsafe { libc::dup2(*source, number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: marks, without closing, every descriptor from the first that the program shall not have.
        if unsafe { libc::syscall(libc::SYS_close_range, first_other, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) }
            < 0
        {
            return Err(io::Error::last_os_error());
        }
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        setrlimit(Resource::RLIMIT_MEMLOCK, memory, memory)?;
        if without_network {
            unshare(CloneFlags::CLONE_NEWNET)?;
        }
        umask(Mode::S_IRWXO);
        setgroups(&groups)?;
        setgid(Gid::from_raw(gid))?;
        prctl::set_keepcaps(administrator)?;
        setuid(Uid::from_raw(uid))?;
        if administrator {
            keep_administration()?;
        }
        prctl::set_no_new_privs()?;
        landlock::restrict_self(rules)?;
        filter.as_ref().map_or(Ok(()), Compiled::apply_after_fork)
    };
    // SAFETY: between fork and exec the closure makes only system calls: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn().map_err(SysError::when("start a program"))?;
    drop((sources, ruleset));
    i32::try_from(child.id()).map_err(|_| SysError { what: "start a program", source: io::Error::other("process id") })
}

/// Has the kernel kill what `command` will start when the thread that starts it ends, however that happens. What that has
/// started itself is not affected.
pub fn end_with_this_thread(command: &mut Command) {
    let parent = Pid::this();
    let prepare = move || -> io::Result<()> {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It may have ended before.
        if Pid::parent() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec the closure makes only system calls: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
}

/// Waits until any child ends and gives its process id. PID 1 also gets orphans this way.
///
/// # Errors
/// [`SysError`] when there is no child.
pub fn wait_any() -> Result<i32, SysError> {
    loop {
        if let Some(pid) = wait(None)? {
            return Ok(pid);
        }
    }
}

/// As [`wait_any`], but gives `None` at once when no child has ended.
///
/// # Errors
/// [`SysError`] when there is no child.
pub fn poll_any() -> Result<Option<i32>, SysError> {
    wait(Some(WaitPidFlag::WNOHANG))
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code.
    Exit(i32),
    /// By this signal; a filter's is 31 (SIGSYS).
    Signal(i32),
}

/// Waits, at most `patience`, until the child `pid` ends. `None`: it did not end in time.
///
/// # Errors
/// [`SysError`] when there is no such child.
pub fn wait_for(pid: i32, patience: Duration) -> Result<Option<End>, SysError> {
    let deadline = Instant::now().checked_add(patience);
    loop {
        match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Some(End::Exit(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some(End::Signal(signal as i32))),
            // Not ended, or stopped and continued, which is nothing to a parent.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(SysError::when("wait for a process")(error)),
        }
        if deadline.is_none_or(|deadline| Instant::now() > deadline) {
            return Ok(None);
        }
        thread::sleep(PAUSE);
    }
}

/// User and parent of a process, by `/proc`; `None` when there is no such process.
#[must_use]
pub fn user_and_parent(pid: i32) -> Option<(u32, i32)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    Some((field("Uid:")?.parse().ok()?, field("PPid:")?.parse().ok()?))
}

fn wait(flags: Option<WaitPidFlag>) -> Result<Option<i32>, SysError> {
    match waitpid(None::<Pid>, flags) {
        Err(Errno::EINTR) => Ok(None),
        Err(error) => Err(SysError::when("wait for a process")(error)),
        Ok(status) => Ok(status.pid().map(Pid::as_raw)),
    }
}

/// Keeps `CAP_SYS_ADMIN` alone of what the change of the user has left, also for the program that is started (capabilities(7),
/// "Ambient capability set"). Only system calls: for use between fork and exec.
fn keep_administration() -> io::Result<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let only = CapabilityData { effective: ADMIN, permitted: ADMIN, inheritable: ADMIN };
    let none = CapabilityData { effective: 0, permitted: 0, inheritable: 0 };
    let sets = [only, none];
    // SAFETY: both structures are those of capset(2), version 3, and live until the call returns.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let (raise, none): (libc::c_ulong, libc::c_ulong) = (libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, 0);
    // SAFETY: plain numbers.
    if unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, CAP_SYS_ADMIN, none, none) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `struct __user_cap_header_struct` (linux/capability.h).
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`: 32 of the 64 capabilities.
#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
const CAP_SYS_ADMIN: libc::c_ulong = 21;
const ADMIN: u32 = 1 << CAP_SYS_ADMIN;

/// Copies above every target number, so that no copy overwrites a source. They close on exec.
fn out_of_the_way(descriptors: &[impl AsFd]) -> Result<Vec<OwnedFd>, SysError> {
    use std::os::fd::FromRawFd as _;
    let copy = |fd: &_| -> Result<OwnedFd, SysError> {
        let copy = fcntl(AsFd::as_fd(fd), FcntlArg::F_DUPFD_CLOEXEC(FIRST_FREE)).map_err(SysError::when("copy"))?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(copy) })
    };
    descriptors.iter().map(copy).collect()
}

/// No program inherits more descriptors than fit below.
const FIRST_FREE: RawFd = 64;
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, os::unix::net::UnixStream};

    use super::*;
    use crate::landlock::{Access, Reach, abi};

    fn program(arguments: &[&str], descriptors: Vec<OwnedFd>) -> Program<'static> {
        Program {
            path: "/bin/sh",
            arguments: arguments.iter().map(OsString::from).collect(),
            uid: 65_534,
            gid: 65_534,
            groups: Vec::new(),
            descriptors,
            without_network: true,
            locks_memory: false,
            reach: Reach { paths: vec![("/".into(), Access::Execute), ("/".into(), Access::Read)], tcp_listen: None },
            filter: None,
            inherits_stderr: false,
        }
    }

    /// Needs the rights of root, as PID 1 has.
    #[test]
    fn a_child_has_its_user_its_descriptors_and_nothing_else() {
        if !Uid::effective().is_root() {
            println!("SKIPPED: starting a child as another user needs root");
            return;
        }
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let other = File::open("/dev/null").unwrap();
        let script = "id -u >&4; ulimit -c >&4; ls /proc/self/fd | tr '\\n' ' ' >&4; \
            grep NoNewPrivs /proc/self/status >&4; env >&4; ls /sys/class/net | wc -l >&4; cat /proc/net/dev | wc -l >&4";
        let pid = start(program(&["-c", script], vec![other.into(), theirs.into()])).unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(waitpid(Pid::from_raw(pid), None).unwrap().pid().unwrap().as_raw(), pid);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], "65534");
        assert_eq!(lines[1], "0");
        let (numbers, privileges) = lines[2].split_once("NoNewPrivs:").unwrap();
        assert_eq!(privileges.trim(), "1");
        // Standard streams, the two of ours, the directory that ls has open, and one that the shell saves.
        assert!(numbers.split_whitespace().all(|n| ["0", "1", "2", "3", "4", "5", "10"].contains(&n)), "{said}");
        assert!(numbers.starts_with("0 1 ") && numbers.contains(" 3 4 "), "{said}");
        assert!(!said.contains("CARGO"), "{said}");
        // Two lines of heading and loopback.
        assert_eq!(lines.last(), Some(&"3"), "{said}");
    }

    #[test]
    fn a_child_is_in_the_groups_that_it_was_given() {
        if !Uid::effective().is_root() {
            println!("SKIPPED: starting a child as another user needs root");
            return;
        }
        for (groups, said) in [(vec![], "65534\n"), (vec![104], "65534 104\n")] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let pid = start(Program { groups, ..program(&["-c", "id -G >&3"], vec![theirs.into()]) }).unwrap();
            let mut found = String::new();
            ours.read_to_string(&mut found).unwrap();
            waitpid(Pid::from_raw(pid), None).unwrap();
            assert_eq!(found, said);
        }
    }

    #[test]
    fn an_administrator_has_that_right_and_no_other() {
        if !Uid::effective().is_root() {
            println!("SKIPPED: starting a child as another user needs root");
            return;
        }
        let rights = |start: fn(Program<'_>) -> Result<i32, SysError>| {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let script = "id -u >&3; grep -E '^(Cap(Prm|Eff|Amb)|NoNewPrivs)' /proc/self/status >&3";
            let pid = start(program(&["-c", script], vec![theirs.into()])).unwrap();
            let mut said = String::new();
            ours.read_to_string(&mut said).unwrap();
            waitpid(Pid::from_raw(pid), None).unwrap();
            said
        };
        let said = |set: &str| format!("65534\nCapPrm:\t{set}\nCapEff:\t{set}\nCapAmb:\t{set}\nNoNewPrivs:\t1\n");
        assert_eq!(rights(start), said("0000000000000000"));
        assert_eq!(rights(start_administrator), said("0000000000200000"));
    }

    /// What a shell says when it tries `script` as another user with this reach.
    fn tried(script: &str, reach: Reach) -> String {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let shell =
            [("/bin".into(), Access::Execute), ("/usr".into(), Access::Execute), ("/lib64".into(), Access::Execute)];
        let mut reach = reach;
        reach.paths.extend(shell);
        reach.paths.push(("/etc/ld.so.cache".into(), Access::Read));
        let pid = start(Program { reach, ..program(&["-c", script], vec![theirs.into()]) }).unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        waitpid(Pid::from_raw(pid), None).unwrap();
        said
    }

    #[test]
    fn a_child_reaches_only_the_files_it_was_given() {
        if !Uid::effective().is_root() || abi().is_err() {
            println!("SKIPPED: restricting a child needs root and a kernel with Landlock");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (given, other) = (directory.path().join("given"), directory.path().join("other"));
        for path in [&given, &other] {
            std::fs::write(path, "x\n").unwrap();
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        }
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let script = format!(
            "read a < {0} && echo -n r$a >&3; (echo y > {0}) && echo -n w >&3; read a < {1} && echo -n R$a >&3; \
            (echo y > {1}) && echo -n W >&3; (echo y > {1}2) && echo -n C >&3; true",
            given.display(),
            other.display()
        );
        let read = Reach { paths: vec![(given.clone(), Access::Read)], tcp_listen: None };
        assert_eq!(tried(&script, read), "rx");
        // `Device` writes, but does not truncate; the shell's `>` does.
        let written = script.replace("> ", ">> ");
        let device = Reach { paths: vec![(given.clone(), Access::Device)], tcp_listen: None };
        assert_eq!(tried(&written, device), "rxw");
        // The check can fail: with all of the directory, all of it works.
        let all = Reach { paths: vec![(directory.path().into(), Access::Device)], tcp_listen: None };
        assert_eq!(tried(&written, all), "rxwRxW");
    }

    /// The shell with a filter: it may run as far as the filter goes.
    #[test]
    fn a_filter_holds_from_the_program_s_first_call() {
        if !Uid::effective().is_root() || abi().is_err() {
            println!("SKIPPED: restricting a child needs root and a kernel with Landlock");
            return;
        }
        let ended = |filter: Filter| {
            let pid = start(Program { filter: Some(filter), ..program(&["-c", "cd /tmp"], vec![]) }).unwrap();
            wait_for(pid, Duration::from_secs(60)).unwrap()
        };
        let everything: Vec<i64> = (0..=500).collect();
        assert_eq!(ended(Filter::default().allow(&everything)), Some(End::Exit(0)));
        let but_chdir: Vec<i64> = everything.iter().copied().filter(|call| *call != libc::SYS_chdir).collect();
        assert_eq!(ended(Filter::default().allow(&but_chdir)), Some(End::Signal(libc::SIGSYS)));
        // A call that is answered with an error leaves the program running, to an exit code of its own.
        assert_eq!(ended(Filter::default().allow(&everything).refuse(&[libc::SYS_chdir])), Some(End::Exit(2)));
    }

    #[test]
    fn a_process_has_a_user_and_a_parent() {
        let parent = i32::try_from(std::os::unix::process::parent_id()).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(user_and_parent(own), Some((Uid::current().as_raw(), parent)));
        assert_eq!(user_and_parent(-1), None);
        assert!(wait_for(i32::MAX, Duration::ZERO).is_err());
    }

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let ended = |with_thread: bool| {
            let child = thread::spawn(move || {
                let mut command = Command::new("/bin/sleep");
                command.arg("2");
                if with_thread {
                    end_with_this_thread(&mut command);
                }
                command.spawn().unwrap()
            });
            let mut child = child.join().unwrap();
            child.wait().unwrap().code()
        };
        assert_eq!(ended(true), None, "by a signal");
        assert_eq!(ended(false), Some(0));
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let missing = Program { path: "/nonexistent", ..program(&[], vec![]) };
        assert!(start(missing).is_err());
    }
}
