//! Interfaces of the calling thread's network namespace (`netdevice(7)`).
//!
//! Runs on: any process.

use std::ffi::CStr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::check;

/// Sets the size of the largest packet that an interface takes (`SIOCSIFMTU`).
///
/// # Errors
/// ENAMETOOLONG if the name is none that an interface can have; else the kernel's.
pub(crate) fn set_mtu(interface: &CStr, mtu: libc::c_int) -> Result<(), Errno> {
    let value = libc::__c_anonymous_ifr_ifru { ifru_mtu: mtu };
    configure(interface, libc::SIOCSIFMTU, value)
}

/// Raises an interface (`SIOCSIFFLAGS`). Of its flags only those that a user sets are lowered, of
/// which a new one has none (`__dev_change_flags`).
///
/// # Errors
/// As [`set_mtu`].
pub(crate) fn raise(interface: &CStr) -> Result<(), Errno> {
    let flags = libc::IFF_UP as libc::c_short;
    let value = libc::__c_anonymous_ifr_ifru { ifru_flags: flags };
    configure(interface, libc::SIOCSIFFLAGS, value)
}

fn configure(
    interface: &CStr,
    command: libc::Ioctl,
    value: libc::__c_anonymous_ifr_ifru,
) -> Result<(), Errno> {
    // SAFETY: all-zero is a valid ifreq, which is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.to_bytes();
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name) {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru = value;
    // Any socket will do: it only says which namespace is meant.
    let any = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: the request is valid for this call, which reads it, and its name ends with a zero.
    check(unsafe { libc::ioctl(any.as_raw_fd(), command, &raw const request) }.into()).map(drop)
}
