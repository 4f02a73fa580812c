// SPDX-License-Identifier: Apache-2.0
//! Whose a connection is, as a proxy says it before the first byte of the client: the header of the PROXY protocol,
//! version 2 (HAProxy, `doc/proxy-protocol.txt`, section 2.2).
//!
//! Taken are TCP over IPv4 and IPv6, and connections of the proxy's own. Whatever else stands in a header, extensions and
//! a checksum among it, is passed over. Who may speak to a reader can say any address: nothing is established by it.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Who a connection is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The one who made it: it is not made for a client.
    Local,
    /// This client.
    Client(SocketAddr),
}

/// What is known of the first bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The beginning of a header that has at least this many bytes: who reads no further reads nothing behind it.
    Part(usize),
    /// A whole header.
    Whole(Source),
}

/// Why bytes are no header. What follows them does not make them one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The first twelve bytes.
    Signature,
    /// The version is not 2.
    Version,
    /// Neither for a client nor the proxy's own.
    Command,
    /// Not TCP over IPv4 or IPv6.
    Family,
    /// Shorter than its addresses.
    Short,
    /// Longer than [`MAX_BYTES`].
    Long,
    /// There are bytes behind it.
    Beyond,
}

/// Judges all bytes that a connection brought, from its first on.
///
/// # Errors
/// [`Refused`] names the rule, at the first byte that breaks it.
pub fn hear(bytes: &[u8]) -> Result<Heard, Refused> {
    let (signature, rest) = bytes.split_at_checked(SIGNATURE.len()).unwrap_or((bytes, &[]));
    if !SIGNATURE.starts_with(signature) {
        return Err(Refused::Signature);
    }
    let Some(command) = rest.first().copied().map(command).transpose()? else { return Ok(Heard::Part(FIXED)) };
    let Some(family) = rest.get(1).copied().map(|byte| family(command, byte)).transpose()? else {
        return Ok(Heard::Part(FIXED));
    };
    let Some(([_, _, high, low], block)) = rest.split_first_chunk() else { return Ok(Heard::Part(FIXED)) };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let whole = FIXED.saturating_add(length);
    if whole > MAX_BYTES {
        return Err(Refused::Long);
    }
    if length < family.bytes() {
        return Err(Refused::Short);
    }
    if block.len() < length {
        return Ok(Heard::Part(whole));
    }
    if block.len() > length {
        return Err(Refused::Beyond);
    }
    family.source(block).map(Heard::Whole).ok_or(Refused::Short)
}

/// The header of a connection that a client made to `listening`.
#[must_use]
pub fn header(client: SocketAddr, listening: SocketAddr) -> Vec<u8> {
    let ports = [client.port().to_be_bytes(), listening.port().to_be_bytes()].concat();
    let (family, addresses) = match (client.ip().to_canonical(), listening.ip().to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(listening)) => (TCP4, [client.octets(), listening.octets()].concat()),
        (client, listening) => (TCP6, [wide(client).octets(), wide(listening).octets()].concat()),
    };
    let block = [addresses, ports].concat();
    // 12 or 36 bytes.
    let length = u16::try_from(block.len()).unwrap_or(u16::MAX).to_be_bytes();
    [SIGNATURE.as_slice(), &[PROXY, family], &length, &block].concat()
}

/// The header of a proxy's own connection.
pub const LOCAL: [u8; FIXED] = *b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

/// Most bytes of a header: as many as addresses of any kind take, and so some extensions.
pub const MAX_BYTES: usize = FIXED + 216;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signature => "it does not begin as a header of version 2 does",
            Self::Version => "it is of another version than 2",
            Self::Command => "its command is unknown",
            Self::Family => "it is of another kind than TCP over IPv4 or IPv6",
            Self::Short => "it is shorter than its addresses",
            Self::Long => "it is longer than 232 bytes",
            Self::Beyond => "there is something behind it",
        })
    }
}

impl core::error::Error for Refused {}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Command {
    Local,
    Proxy,
}

fn command(byte: u8) -> Result<Command, Refused> {
    match (byte >> 4, byte & 0xf) {
        (VERSION, 0) => Ok(Command::Local),
        (VERSION, 1) => Ok(Command::Proxy),
        (VERSION, _) => Err(Refused::Command),
        _ => Err(Refused::Version),
    }
}

/// What stands behind the fixed part.
#[derive(Clone, Copy)]
enum Family {
    /// Nothing that counts, whatever its kind.
    Ignored,
    Tcp4,
    Tcp6,
}

fn family(command: Command, byte: u8) -> Result<Family, Refused> {
    match (command, byte) {
        (Command::Local, _) => Ok(Family::Ignored),
        (Command::Proxy, TCP4) => Ok(Family::Tcp4),
        (Command::Proxy, TCP6) => Ok(Family::Tcp6),
        (Command::Proxy, _) => Err(Refused::Family),
    }
}

impl Family {
    const fn bytes(self) -> usize {
        match self {
            Self::Ignored => 0,
            Self::Tcp4 => 12,
            Self::Tcp6 => 36,
        }
    }

    /// The first of both addresses, with the first of both ports.
    fn source(self, block: &[u8]) -> Option<Source> {
        let (address, ports): (IpAddr, _) = match self {
            Self::Ignored => return Some(Source::Local),
            Self::Tcp4 => (Ipv4Addr::from(*block.first_chunk::<4>()?).into(), block.get(8..)?),
            Self::Tcp6 => (Ipv6Addr::from(*block.first_chunk::<16>()?).into(), block.get(32..)?),
        };
        let port = u16::from_be_bytes(*ports.first_chunk()?);
        Some(Source::Client(SocketAddr::new(address, port)))
    }
}

fn wide(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED: usize = 16;
const VERSION: u8 = 2;
const PROXY: u8 = 0x21;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

#[cfg(test)]
mod tests {
    use super::*;

    fn four() -> Vec<u8> {
        header("192.0.2.1:50000".parse().unwrap(), "198.51.100.4:443".parse().unwrap())
    }

    fn six() -> Vec<u8> {
        header("[2001:db8::1]:50000".parse().unwrap(), "[2001:db8::2]:443".parse().unwrap())
    }

    /// The same with a block that is longer by `more` bytes.
    fn extended(mut header: Vec<u8>, more: usize) -> Vec<u8> {
        header.resize(header.len() + more, 0xee);
        let length = u16::try_from(header.len() - FIXED).unwrap();
        header[14..16].copy_from_slice(&length.to_be_bytes());
        header
    }

    fn client(text: &str) -> Result<Heard, Refused> {
        Ok(Heard::Whole(Source::Client(text.parse().unwrap())))
    }

    #[test]
    fn it_is_written_as_specified() {
        let written = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x04\xc3\x50\x01\xbb";
        assert_eq!(four(), written);
        let written = [
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x24\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01".as_slice(),
            b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x02\xc3\x50\x01\xbb",
        ];
        assert_eq!(six(), written.concat());
        assert_eq!(hear(&four()), client("192.0.2.1:50000"));
        assert_eq!(hear(&six()), client("[2001:db8::1]:50000"));
        let mixed = header("192.0.2.1:1".parse().unwrap(), "[2001:db8::2]:443".parse().unwrap());
        assert_eq!(hear(&mixed), client("[::ffff:192.0.2.1]:1"));
        let mapped = header("[::ffff:192.0.2.1]:50000".parse().unwrap(), "198.51.100.4:443".parse().unwrap());
        assert_eq!(mapped, four());
        assert_eq!(hear(&LOCAL), Ok(Heard::Whole(Source::Local)));
    }

    #[test]
    fn each_part_says_how_much_is_still_to_be_read_and_never_more() {
        for whole in [four(), six(), LOCAL.to_vec(), extended(four(), 30), extended(LOCAL.to_vec(), 216)] {
            for length in 0..whole.len() {
                let Ok(Heard::Part(wanted)) = hear(&whole[..length]) else { panic!("{length}") };
                assert!(length < wanted && wanted <= whole.len(), "{length} {wanted}");
            }
            assert!(matches!(hear(&whole), Ok(Heard::Whole(_))));
            assert_eq!(hear(&[whole.as_slice(), b"\x16"].concat()), Err(Refused::Beyond));
        }
    }

    #[test]
    fn every_other_byte_in_the_fixed_part_is_refused_at_once() {
        for place in 0..14 {
            for byte in (0..=u8::MAX).filter(|byte| *byte != four()[place]) {
                let mut bytes = four();
                bytes[place] = byte;
                let refused = match (place, byte) {
                    (..=11, _) => Refused::Signature,
                    // Such a header is taken, and its addresses are not looked at.
                    (12, 0x20) => continue,
                    (12, 0x22..=0x2f) => Refused::Command,
                    (12, _) => Refused::Version,
                    (_, TCP6) => Refused::Short,
                    _ => Refused::Family,
                };
                assert_eq!(hear(&bytes), Err(refused), "{place} {byte}");
                if refused != Refused::Short {
                    assert_eq!(hear(&bytes[..=place]), Err(refused), "{place} {byte}");
                }
            }
        }
        for other in [b"PROXY TCP4 192.0.2.1 198.51.100.4 50000 443\r\n".as_slice(), b"\x16\x03\x01\x02\x00", b"\0"] {
            assert_eq!(hear(other), Err(Refused::Signature));
        }
    }

    #[test]
    fn lengths_have_both_limits() {
        for (good, most) in [(four(), 204), (six(), 180), (LOCAL.to_vec(), 216)] {
            assert_eq!(hear(&extended(good.clone(), most)), hear(&good), "extensions are passed over");
            assert_eq!(hear(&extended(good.clone(), most + 1)), Err(Refused::Long));
            assert_eq!(hear(&extended(good.clone(), most + 1)[..FIXED]), Err(Refused::Long));
            let mut longest = good;
            longest[14..16].copy_from_slice(&[0xff; 2]);
            assert_eq!(hear(&longest), Err(Refused::Long));
        }
        for (good, least) in [(four(), 12), (six(), 36)] {
            for length in 0..least {
                let mut bytes = good[..FIXED + usize::from(length)].to_vec();
                bytes[14..16].copy_from_slice(&u16::to_be_bytes(length));
                assert_eq!(hear(&bytes), Err(Refused::Short), "{length}");
                assert_eq!(hear(&bytes[..FIXED]), Err(Refused::Short), "{length}");
            }
        }
    }

    #[test]
    fn a_proxys_own_connection_may_be_of_any_kind() {
        for kind in 0..=u8::MAX {
            let mut bytes = four();
            (bytes[12], bytes[13]) = (0x20, kind);
            assert_eq!(hear(&bytes), Ok(Heard::Whole(Source::Local)), "{kind}");
        }
    }
}
