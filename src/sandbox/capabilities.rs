//! No capability, and no way back to one.
//!
//! Runs on: a child.

use caps::CapSet;
use nix::errno::Errno;

use crate::layer::{Layer, Layers, SetupError, at};
use crate::sys::process::prctl;

/// Every securebit set and locked, except KEEP_CAPS, which is locked as off: user id 0 means
/// nothing, and no ambient capability can be raised (`capabilities(7)`, "The securebits
/// flags").
const SECUREBITS: libc::c_ulong = NOROOT
    | NOROOT << 1
    | NO_SETUID_FIXUP
    | NO_SETUID_FIXUP << 1
    | KEEP_CAPS << 1
    | NO_CAP_AMBIENT_RAISE
    | NO_CAP_AMBIENT_RAISE << 1;
const NOROOT: libc::c_ulong = 1;
const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
const KEEP_CAPS: libc::c_ulong = 1 << 4;
const NO_CAP_AMBIENT_RAISE: libc::c_ulong = 1 << 6;

const LAYER: Layer = Layer::DropCapabilities;

/// Empties the bounding set, locks the securebits, then drops every capability. The first
/// two need CAP_SETPCAP, so they come first.
pub(crate) fn drop_all(layers: &Layers) -> Result<(), SetupError> {
    if !layers.has(LAYER) {
        return Ok(());
    }
    empty_bounding_set()?;
    prctl(libc::PR_SET_SECUREBITS, SECUREBITS).map_err(at(LAYER, "prctl(PR_SET_SECUREBITS)"))?;
    clear(CapSet::Ambient)?;
    clear(CapSet::Inheritable)?;
    clear(CapSet::Effective)?;
    clear(CapSet::Permitted)
}

/// The kernel must know at least the capabilities up to this one (CAP_CHECKPOINT_RESTORE, Linux
/// 5.9): an EINVAL before it is not the end of the range.
const LEAST_LAST: libc::c_ulong = 40;

/// Calls `prctl` with each capability that this kernel knows, by number, until one is
/// answered otherwise than `wanted`, and returns that answer. The caps crate takes a
/// capability that it cannot ask for as one that is absent.
fn for_each_capability(option: libc::c_int, wanted: i64) -> Result<Option<i64>, Errno> {
    for capability in 0..64 {
        match prctl(option, capability) {
            Ok(answer) if answer == wanted => {}
            Ok(answer) => return Ok(Some(answer)),
            Err(Errno::EINVAL) if capability > LEAST_LAST => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

fn empty_bounding_set() -> Result<(), SetupError> {
    for_each_capability(libc::PR_CAPBSET_DROP, 0)
        .map(drop)
        .map_err(at(LAYER, "prctl(PR_CAPBSET_DROP)"))
}

fn clear(set: CapSet) -> Result<(), SetupError> {
    caps::clear(None, set)
        .map_err(|error| SetupError::new(LAYER, format!("{set:?}: {error}"), Errno::last()))
}

/// Says which promise about capabilities does not hold, if one does not.
pub(crate) fn broken_promise(layers: &Layers) -> Option<&'static str> {
    if !layers.has(LAYER) {
        return None;
    }
    let sets = [
        (CapSet::Effective, "a capability is effective"),
        (CapSet::Permitted, "a capability is permitted"),
        (CapSet::Inheritable, "a capability is inheritable"),
    ];
    for (set, promise) in sets {
        if !caps::read(None, set).is_ok_and(|set| set.is_empty()) {
            return Some(promise);
        }
    }
    // The ambient set is a part of the permitted one (capabilities(7)).
    if for_each_capability(libc::PR_CAPBSET_READ, 0) != Ok(None) {
        return Some("the bounding set is not empty");
    }
    if prctl(libc::PR_GET_SECUREBITS, 0) != Ok(SECUREBITS as i64) {
        return Some("the securebits are not locked");
    }
    None
}
