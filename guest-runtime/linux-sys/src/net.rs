// SPDX-License-Identifier: Apache-2.0
//! The guest's network: one interface, one static address.
#![allow(unsafe_code, reason = "the interface ioctls have no safe wrapper")]

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::SysError;

/// Brings the loopback interface up.
///
/// # Errors
/// [`NetError`].
pub fn loopback_up() -> Result<(), NetError> {
    set_up("lo", Ipv4Addr::LOCALHOST, 8)
}

/// Gives the only interface beside loopback its address and brings it up.
///
/// # Errors
/// [`NetError`], also when there is none or more than one.
pub fn interface_up(address: Ipv4Addr, prefix: u8) -> Result<(), NetError> {
    set_up(&only_interface(Path::new("/sys/class/net"))?, address, prefix)
}

/// Whether any process listens on a TCP port of an IPv4 address.
#[must_use]
pub fn is_listening(port: u16) -> bool {
    fs::read_to_string("/proc/net/tcp").is_ok_and(|table| table.lines().any(|line| is_listener(line, port)))
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Not exactly one interface beside loopback.
    #[error("there must be exactly one network interface beside loopback, found {0}")]
    Interfaces(usize),
    /// The name does not fit the kernel's structure.
    #[error("the interface's name is too long")]
    Name,
    /// The prefix is longer than 32.
    #[error("the prefix must be 0 to 32")]
    Prefix,
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// A line of `/proc/net/tcp` (proc_net_tcp in the kernel's documentation): slot, local address, remote address, state.
fn is_listener(line: &str, port: u16) -> bool {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next().and_then(|address| address.rsplit_once(':'));
    let state = fields.nth(1);
    local.is_some_and(|(_, digits)| u16::from_str_radix(digits, 16) == Ok(port)) && state == Some("0A")
}

fn only_interface(class: &Path) -> Result<String, NetError> {
    let names: Vec<String> = fs::read_dir(class)
        .map_err(SysError::when("list interfaces"))?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "lo")
        .collect();
    match names.as_slice() {
        [one] => Ok(one.clone()),
        other => Err(NetError::Interfaces(other.len())),
    }
}

fn set_up(name: &str, address: Ipv4Addr, prefix: u8) -> Result<(), NetError> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(SysError::when("make a socket"))?;
    let mask = mask(prefix).ok_or(NetError::Prefix)?;
    let mut request = named(name).ok_or(NetError::Name)?;
    request.ifr_ifru.ifru_addr = socket_address(address);
    control(&socket, siocsifaddr, &request, "set the interface's address")?;
    request.ifr_ifru.ifru_addr = socket_address(mask);
    control(&socket, siocsifnetmask, &request, "set the interface's mask")?;
    request.ifr_ifru.ifru_flags = UP_AND_RUNNING;
    control(&socket, siocsifflags, &request, "bring the interface up")?;
    Ok(())
}

type Ioctl = unsafe fn(libc::c_int, *const libc::ifreq) -> nix::Result<libc::c_int>;

fn control(socket: &OwnedFd, ioctl: Ioctl, request: &libc::ifreq, what: &'static str) -> Result<(), SysError> {
    // SAFETY: the descriptor is a socket and all three requests read one complete ifreq.
    unsafe { ioctl(socket.as_raw_fd(), request) }.map(drop).map_err(SysError::when(what))
}

nix::ioctl_write_ptr_bad!(
    /// Sets an interface's address (netdevice(7)).
    siocsifaddr,
    libc::SIOCSIFADDR,
    libc::ifreq
);
nix::ioctl_write_ptr_bad!(
    /// Sets an interface's mask (netdevice(7)).
    siocsifnetmask,
    libc::SIOCSIFNETMASK,
    libc::ifreq
);
nix::ioctl_write_ptr_bad!(
    /// Sets an interface's flags (netdevice(7)).
    siocsifflags,
    libc::SIOCSIFFLAGS,
    libc::ifreq
);

fn named(name: &str) -> Option<libc::ifreq> {
    // SAFETY: ifreq is plain data in all of its variants; all zeroes is a value of each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays for the final zero.
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Some(request)
}

/// `struct sockaddr_in` by bytes: family, port, address, zeroes.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().skip(2).zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    libc::sockaddr { sa_family: INET, sa_data: data }
}

fn mask(prefix: u8) -> Option<Ipv4Addr> {
    let host_bits = 32_u32.checked_sub(prefix.into())?;
    Some(Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0)))
}

/// `AF_INET` in the type of the structure.
const INET: libc::sa_family_t = 2;
#[allow(clippy::cast_possible_truncation, reason = "both flags lie in the lower sixteen bits")]
const UP_AND_RUNNING: libc::c_short = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        assert_eq!(mask(24), Some(Ipv4Addr::new(255, 255, 255, 0)));
        assert_eq!(mask(0), Some(Ipv4Addr::UNSPECIFIED));
        assert_eq!(mask(32), Some(Ipv4Addr::BROADCAST));
        assert_eq!(mask(33), None);
    }

    #[test]
    fn exactly_one_interface_and_a_name_that_fits() {
        let class = tempfile::tempdir().unwrap();
        fs::create_dir(class.path().join("lo")).unwrap();
        assert!(matches!(only_interface(class.path()), Err(NetError::Interfaces(0))));
        fs::create_dir(class.path().join("eth0")).unwrap();
        assert_eq!(only_interface(class.path()).unwrap(), "eth0");
        fs::create_dir(class.path().join("eth1")).unwrap();
        assert!(matches!(only_interface(class.path()), Err(NetError::Interfaces(2))));
        assert!(named("eth0").is_some() && named("").is_none() && named(&"e".repeat(16)).is_none());
    }

    #[test]
    fn a_listener_is_known_by_port_and_state() {
        let line = "   0: 0F02000A:20FB 00000000:0000 0A 00000000:00000000 00:00000000 00000000   102        0 5";
        assert!(is_listener(line, 8443) && !is_listener(line, 8444));
        assert!(!is_listener(&line.replace(" 0A ", " 01 "), 8443));
        assert!(!is_listener("  sl  local_address rem_address   st tx_queue", 8443) && !is_listener("", 0));
    }

    #[test]
    fn the_address_stands_where_the_kernel_reads_it() {
        assert_eq!(i32::from(INET), libc::AF_INET);
        let address = socket_address(Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(address.sa_data[..7], [0, 0, 10, 0, 2, 15, 0]);
    }
}
