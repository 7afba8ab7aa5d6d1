//! The system call filter: an allow-list compiled from `seccomp_policy.toml`.
//!
//! Runs on: the main thread, a child.
//!
//! A call on the kill list is trapped, so that a handler can write its name, and then the
//! process ends with SIGSYS by a second, reserved call that the filter answers with
//! `RET_KILL_PROCESS`. That second call is needed: the default action of a signal does not
//! end PID 1 of a namespace. Calls by another architecture's numbers (32-bit, x32) end the
//! process at once.

use std::fs::File;
use std::io::{Read, Seek};
use std::sync::OnceLock;

use anyhow::Context;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use nix::errno::Errno;
use serde::Deserialize;

use crate::layer::{Layer, Layers, SetupError, at};
use crate::sys::seccomp as sys;
use crate::wire::{record, result_channel};

const POLICY: &str = include_str!("seccomp_policy.toml");

/// The call that the SIGSYS handler ends the process with. No job can have a use for it.
const RESERVED_CALL: &str = "kexec_load";
const RESERVED_NUMBER: libc::c_long = libc::SYS_kexec_load;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    allow: Vec<Entry>,
    /// Answered with success, and not made.
    ignore: Vec<Entry>,
    /// Answered with EPERM.
    refuse: Vec<Entry>,
    kill: Vec<Entry>,
}

impl Policy {
    #[cfg(test)]
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let lists = [&self.allow, &self.ignore, &self.refuse, &self.kill];
        lists.into_iter().flatten()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// For the reader of the policy; not empty (see the tests).
    #[cfg_attr(not(test), expect(dead_code))]
    reason: String,
    calls: Vec<String>,
    #[serde(default)]
    when: Vec<Condition>,
    /// Whether it counts only for a job that has a network.
    #[serde(default)]
    network: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    arg: u32,
    #[serde(default, deserialize_with = "wide")]
    mask: Option<u64>,
    #[serde(default)]
    equals: Option<u64>,
    #[serde(default)]
    not: Option<u64>,
    #[serde(default)]
    below: Option<u64>,
    #[serde(default)]
    at_least: Option<u64>,
}

/// TOML's integers are signed; a mask may use all 64 bits.
fn wide<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    i128::deserialize(deserializer).map(|value| Some(value as u64))
}

impl Condition {
    fn compile(&self) -> anyhow::Result<ScmpArgCompare> {
        let equals = ScmpCompareOp::MaskedEqual(self.mask.unwrap_or(0xFFFF_FFFF));
        let all = [
            (equals, self.equals),
            (ScmpCompareOp::NotEqual, self.not),
            (ScmpCompareOp::Less, self.below),
            (ScmpCompareOp::GreaterEqual, self.at_least),
        ];
        let mut named = all
            .into_iter()
            .filter_map(|(operator, value)| Some((operator, value?)));
        let (Some((operator, value)), None) = (named.next(), named.next()) else {
            anyhow::bail!("a condition needs one of equals, not, below and at_least");
        };
        anyhow::ensure!(
            self.mask.is_none() || self.equals.is_some(),
            "a mask needs equals"
        );
        Ok(ScmpArgCompare::new(self.arg, operator, value))
    }
}

/// Has io_uring answered with ENOSYS for the calling thread and those that it starts, as it is for jobs. A library that found
/// it while it was preloaded (libuv makes a ring for each event loop) would use it in every job. The filter comes to children as
/// well, below their own.
///
/// # Errors
/// Of `seccomp(2)`: it needs CAP_SYS_ADMIN.
pub(crate) fn hide_io_uring() -> anyhow::Result<()> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
    filter.set_act_badarch(ScmpAction::Allow)?;
    for name in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        filter.add_rule(
            ScmpAction::Errno(libc::ENOSYS),
            ScmpSyscall::from_name(name)?,
        )?;
    }
    sys::install(&export(&filter)?).context("seccomp")
}

/// Whether the policy holds for the calling process, by a call that it does not list and that the kernel would refuse
/// otherwise (EINVAL). Its mode does not tell, since the host has a filter of its own.
pub(crate) fn is_in_force() -> bool {
    sys::unlisted_call() == Err(Errno::ENOSYS)
}

/// The compiled filters.
pub(crate) struct Program {
    without_network: Vec<libc::sock_filter>,
    with_network: Vec<libc::sock_filter>,
}

impl Program {
    /// Compiles the policy for this machine's architecture.
    pub(crate) fn compile() -> anyhow::Result<Self> {
        call_names();
        Ok(Self {
            without_network: compile_for(ScmpArch::native(), false)
                .context("compiling the seccomp policy")?,
            with_network: compile_for(ScmpArch::native(), true)
                .context("compiling the seccomp policy")?,
        })
    }

    /// Installs handler and filter in the calling child.
    pub(crate) fn install(&self, layers: &Layers, has_network: bool) -> Result<(), SetupError> {
        if !layers.has(Layer::Seccomp) {
            return Ok(());
        }
        // SAFETY: `report_and_end` makes only raw writes and a raw call, and reads statics
        // that were filled in before the clone.
        unsafe { sys::set_sigsys_handler(report_and_end) }
            .map_err(at(Layer::Seccomp, "sigaction(SIGSYS)"))?;
        let instructions = match has_network {
            true => &self.with_network,
            false => &self.without_network,
        };
        sys::install(instructions).map_err(at(Layer::Seccomp, "seccomp"))
    }
}

fn compile_for(arch: ScmpArch, has_network: bool) -> anyhow::Result<Vec<libc::sock_filter>> {
    let mut policy: Policy = toml::from_str(POLICY)?;
    policy.allow.retain(|entry| has_network || !entry.network);
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(libc::ENOSYS))?;
    if arch != ScmpArch::native() {
        filter.add_arch(arch)?;
        filter.remove_arch(ScmpArch::native())?;
    }
    filter.set_act_badarch(ScmpAction::KillProcess)?;
    // A balanced tree instead of a chain: fewer instructions run per call.
    filter.set_ctl_optimize(2)?;
    add(&mut filter, arch, ScmpAction::Allow, &policy.allow)?;
    add(
        &mut filter,
        arch,
        ScmpAction::Errno(libc::EPERM),
        &policy.refuse,
    )?;
    add(&mut filter, arch, ScmpAction::Errno(0), &policy.ignore)?;
    add(&mut filter, arch, ScmpAction::Trap, &policy.kill)?;
    let reserved = ScmpSyscall::from_name_by_arch(RESERVED_CALL, arch)?;
    filter.add_rule(ScmpAction::KillProcess, reserved)?;
    export(&filter)
}

fn add(
    filter: &mut ScmpFilterContext,
    arch: ScmpArch,
    action: ScmpAction,
    entries: &[Entry],
) -> anyhow::Result<()> {
    for entry in entries {
        let conditions: Vec<_> = entry
            .when
            .iter()
            .map(Condition::compile)
            .collect::<Result<_, _>>()?;
        for name in &entry.calls {
            // Not every architecture has every call; negative numbers are libseccomp's own.
            let call = match ScmpSyscall::from_name_by_arch(name, arch) {
                Ok(call) if i32::from(call) >= 0 => call,
                _ => continue,
            };
            filter
                .add_rule_conditional(action, call, &conditions)
                .with_context(|| format!("rule for {name}"))?;
        }
    }
    Ok(())
}

/// libseccomp writes a program to a descriptor; this reads it back as instructions.
fn export(filter: &ScmpFilterContext) -> anyhow::Result<Vec<libc::sock_filter>> {
    let fd = nix::sys::memfd::memfd_create("seccomp", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(fd);
    filter.export_bpf(&file)?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let instructions = bytes.chunks_exact(8).map(|b| libc::sock_filter {
        code: u16::from_ne_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
    });
    Ok(instructions.collect())
}

/// Names by number, looked up before the first clone: a handler may not allocate.
fn call_names() -> &'static [String] {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    NAMES.get_or_init(|| {
        (0..512)
            .map(|number| {
                ScmpSyscall::from(number)
                    .get_name()
                    .unwrap_or_else(|_| number.to_string())
            })
            .collect()
    })
}

/// Writes the name of the trapped call, then ends the process with SIGSYS.
extern "C" fn report_and_end(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: called by the kernel as a SIGSYS handler.
    let number = unsafe { sys::trapped_call(info) };
    let name = call_names()
        .get(number as usize)
        .map_or("unknown", String::as_str);
    let mut line = [0u8; 128];
    let (fd, length) = match result_channel::number() {
        Some(channel) => (
            channel,
            record::frame_into(&mut line, record::BLOCKED, name.as_bytes()),
        ),
        None => {
            let parts = [b"pyspawner: blocked system call: ", name.as_bytes(), b"\n"];
            let length = record::concat_into(&mut line, &parts);
            (libc::STDERR_FILENO, length)
        }
    };
    crate::sys::files::write_once(fd, &line[..length]);
    sys::call(RESERVED_NUMBER);
    // Only reached if the filter is not what this handler was made for.
    crate::sys::process::exit_now(Errno::ENOSYS as i32);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        toml::from_str(POLICY).expect("the policy is valid TOML")
    }

    #[test]
    fn every_entry_says_why() {
        let policy = policy();
        for entry in policy.entries() {
            assert!(entry.reason.len() > 10, "{:?}", entry.calls);
            assert!(!entry.calls.is_empty(), "{}", entry.reason);
        }
    }

    #[test]
    fn no_call_is_both_allowed_and_fatal() {
        let policy = policy();
        let allowed: Vec<_> = policy.allow.iter().flat_map(|e| &e.calls).collect();
        for call in policy.kill.iter().flat_map(|e| &e.calls) {
            assert!(!allowed.contains(&call), "{call}");
            assert_ne!(call, RESERVED_CALL);
        }
    }

    #[test]
    fn every_name_exists_on_some_architecture() {
        let policy = policy();
        for name in policy.entries().flat_map(|e| &e.calls) {
            // Newer than the oldest libseccomp in use; answered with ENOSYS there.
            if name == "fchmodat2" {
                continue;
            }
            let known = [ScmpArch::X8664, ScmpArch::Aarch64, ScmpArch::X86]
                .iter()
                .any(|arch| ScmpSyscall::from_name_by_arch(name, *arch).is_ok());
            assert!(known, "{name} is no system call");
        }
    }

    #[test]
    fn both_architectures_compile() {
        for arch in [ScmpArch::X8664, ScmpArch::Aarch64] {
            let [program, without_network] =
                [true, false].map(|network| compile_for(arch, network).expect("compiles"));
            assert!(without_network.len() < program.len());
            assert!(
                program.len() > 100,
                "{arch:?}: {} instructions",
                program.len()
            );
            assert!(program.len() < 4096, "BPF_MAXINSNS");
        }
    }
}
