// SPDX-License-Identifier: Apache-2.0
//! The front of a guest: a process that listens for its clients and passes bytes on to the generation that serves.
//!
//! It is a process of its own, so that neither the daemon's end nor a guest's exchange closes the port or cuts
//! connections that go elsewhere. It sees ciphertext only: TLS ends in the guest.

mod client;
mod places;
mod splice;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Notify;

use crate::claim::Claim;
use crate::files;

pub(crate) use client::ask;
use places::{Most, Peer, Places};
use splice::Patience;

/// A guest's front, as the daemon starts it.
#[derive(Debug, Args)]
pub(crate) struct FrontArgs {
    /// The guest's directory.
    #[arg(long)]
    dir: PathBuf,
    /// Where clients connect.
    #[arg(long)]
    listen: SocketAddrV4,
}

/// What the daemon asks of a front: one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum FrontRequest {
    /// How it is.
    Status,
    /// Send new connections there: generation and address.
    Point(Option<(u64, SocketAddrV4)>),
    /// The same, each of them behind a header that says whose it is. A word of its own: fronts of earlier versions refuse it
    /// and stay as they are, and what they know is asked as ever.
    PointWithHeader((u64, SocketAddrV4)),
    /// Listen elsewhere.
    Listen(SocketAddrV4),
}

/// How a front is: one line of JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FrontStatus {
    pub(crate) listen: Option<SocketAddrV4>,
    pub(crate) target: Option<(u64, SocketAddrV4)>,
    /// It writes a header before what a client says. Left out where it does not: daemons of earlier versions know no such field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) header: bool,
    /// Open connections by generation.
    pub(crate) connections: BTreeMap<u64, u64>,
    /// Connections that were passed on.
    pub(crate) accepted: u64,
    /// Connections that were closed at once: nobody serves, or too many were open, or too many of one peer.
    pub(crate) turned_away: u64,
    /// What was asked could not be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Lock of a front, in its guest's directory.
pub(crate) const PID_FILE: &str = "front.pid";
const SOCKET: &str = "front.sock";

/// Runs a front until it is ended.
pub(crate) fn run(args: &FrontArgs) -> anyhow::Result<ExitCode> {
    let _claim = Claim::take(&args.dir.join(PID_FILE))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(args, Limits::default()))
}

#[derive(Default)]
struct Shared {
    status: RefCell<FrontStatus>,
    next_listener: RefCell<Option<TcpListener>>,
    exchange: Notify,
    places: RefCell<Places>,
    patience: Patience,
}

/// What clients may take.
#[derive(Debug, Clone, Copy, Default)]
struct Limits {
    most: Most,
    patience: Patience,
}

async fn serve(args: &FrontArgs, limits: Limits) -> anyhow::Result<ExitCode> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let socket = args.dir.join(SOCKET);
    // The directory is ours (claimed): a socket that is there is a dead front's.
    let _ = std::fs::remove_file(&socket);
    let control = UnixListener::bind(&socket).with_context(|| format!("cannot make {}", socket.display()))?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).context("rights of the socket")?;
    let places = RefCell::new(Places::new(limits.most));
    let shared = Rc::new(Shared { places, patience: limits.patience, ..Shared::default() });
    shared.status.borrow_mut().listen = Some(args.listen);
    tokio::select! {
        () = accept(listener, Rc::clone(&shared)) => {}
        () = answer_all(control, shared) => {}
        _ = terminate.recv() => {}
    }
    let _ = std::fs::remove_file(&socket);
    Ok(ExitCode::SUCCESS)
}

async fn accept(mut listener: TcpListener, shared: Rc<Shared>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.exchange.notified() => {
                if let Some(next) = shared.next_listener.borrow_mut().take() {
                    listener = next;
                }
                continue;
            }
        };
        let Ok((stream, from)) = accepted else {
            // No descriptors are left, say: some connection will end.
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (target, header) = {
            let status = shared.status.borrow();
            (status.target, status.header)
        };
        let peer = Peer::of(from.ip());
        let Some((generation, address)) = target.filter(|_| shared.places.borrow_mut().take(peer)) else {
            shared.status.borrow_mut().turned_away += 1;
            continue;
        };
        shared.status.borrow_mut().accepted += 1;
        let counted = Counted::new(Rc::clone(&shared), generation, peer);
        tokio::task::spawn_local(async move {
            splice::splice(stream, address, header.then_some(from), counted.shared.patience).await;
            drop(counted);
        });
    }
}

/// One open connection in the count of its generation, with the place that its peer has taken.
struct Counted {
    shared: Rc<Shared>,
    generation: u64,
    peer: Peer,
}

impl Counted {
    fn new(shared: Rc<Shared>, generation: u64, peer: Peer) -> Self {
        *shared.status.borrow_mut().connections.entry(generation).or_default() += 1;
        Self { shared, generation, peer }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.places.borrow_mut().leave(self.peer);
        let mut status = self.shared.status.borrow_mut();
        if let Some(count) = status.connections.get_mut(&self.generation) {
            *count = count.saturating_sub(1);
        }
        status.connections.retain(|_, count| *count > 0);
    }
}

fn point(shared: &Shared, target: Option<(u64, SocketAddrV4)>, header: bool) {
    let mut status = shared.status.borrow_mut();
    (status.target, status.header) = (target, header);
}

async fn answer_all(control: UnixListener, shared: Rc<Shared>) {
    loop {
        let Ok((stream, _)) = control.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // One at a time, each within its time: there is one daemon.
        let _ = tokio::time::timeout(ANSWER, answer(stream, &shared)).await;
    }
}

async fn answer(stream: UnixStream, shared: &Shared) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    (&mut stream).take(MAX_REQUEST).read_until(b'\n', &mut line).await?;
    let error = match serde_json::from_slice::<FrontRequest>(&line) {
        Ok(FrontRequest::Status) => None,
        Ok(FrontRequest::Point(target)) => {
            point(shared, target, false);
            None
        }
        Ok(FrontRequest::PointWithHeader(target)) => {
            point(shared, Some(target), true);
            None
        }
        Ok(FrontRequest::Listen(address)) => match TcpListener::bind(address).await {
            Ok(listener) => {
                *shared.next_listener.borrow_mut() = Some(listener);
                shared.status.borrow_mut().listen = Some(address);
                shared.exchange.notify_one();
                None
            }
            Err(error) => Some(format!("cannot listen on {address}: {error}")),
        },
        Err(_) => Some("the request is malformed".to_owned()),
    };
    let status = FrontStatus { error, ..shared.status.borrow().clone() };
    let mut bytes = serde_json::to_vec(&status)?;
    bytes.push(b'\n');
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Removes what a front left in a guest's directory that ran as somebody else than `owner`, unless one holds it: the next
/// one could neither use nor remove that.
pub(crate) fn make_room(guest_dir: &Path, owner: u32) -> anyhow::Result<()> {
    if Claim::holder(&guest_dir.join(PID_FILE)).is_some() {
        return Ok(());
    }
    files::remove_foreign([PID_FILE, SOCKET].map(|name| guest_dir.join(name)), owner).context("left by another user")
}

fn socket(guest_dir: &Path) -> PathBuf {
    guest_dir.join(SOCKET)
}

const PAUSE: Duration = Duration::from_millis(50);
const ANSWER: Duration = Duration::from_secs(2);
const MAX_REQUEST: u64 = 4096;

#[cfg(test)]
mod tests;
