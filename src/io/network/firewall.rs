//! The host's own nftables table: what children may reach, and masquerading.
//!
//! Runs on: the I/O thread.
//!
//! It is installed once and holds for every child: its rules go by the names of interfaces and by
//! the routes to the children, so no program runs for a job. A verdict "accept" in it ends this
//! table's say alone; other tables of the machine are asked as well (`nft(8)`).

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use ipnet::IpNet;
use nix::errno::Errno;
use serde_json::{Value, json};

use super::addresses::{self, ANY_INTERFACE, Block};
use super::forwarding::Changed;
use super::{check_failed, error};
use crate::config::{Destination, destinations};
use crate::layer::SetupError;

const FAMILY: &str = "inet";
/// A table's name is this and the number of the host's block.
const TABLES: &str = "pyspawner-";
/// The sets in it that keep what hosts have [`Changed`].
const FAMILIES: &str = "changed_families";
const INTERFACES: &str = "changed_interfaces";

/// Source ports of children's packets, as the world sees them: above those that Linux gives to the
/// machine's own clients (`ip_local_port_range`).
const PORTS: (u16, u16) = (61000, 65535);

/// Protocols that have ports.
const WITH_PORTS: &[&str] = &["tcp", "udp", "udplite", "sctp", "dccp"];

/// A host has exactly the configured environment, which need not have a PATH.
const PROGRAMS: &[&str] = &[
    "/usr/sbin/nft",
    "/sbin/nft",
    "/usr/local/sbin/nft",
    "/usr/bin/nft",
];

/// The table of one host.
pub(super) struct Firewall {
    program: &'static str,
    table: String,
}

/// What another host's table tells, living or not.
pub(super) struct Record {
    table: String,
    /// The number of its block.
    pub block: u32,
    pub is_living: bool,
    pub changed: Changed,
}

impl Firewall {
    /// Not installed yet.
    pub(super) fn of(block: &Block) -> Result<Self, SetupError> {
        Ok(Self {
            program: find_program()?,
            table: format!("{TABLES}{:x}", block.number()),
        })
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// Installs the table; what a dead host left under that name is replaced in the same step.
    pub(super) fn install(
        &self,
        block: &Block,
        allow: &[Destination],
        changed: &Changed,
    ) -> Result<(), SetupError> {
        let rules = Rules {
            table: &self.table,
            block,
        };
        self.apply("install", &self.table, &rules.all(allow, changed))
    }

    /// Removes the table.
    pub(super) fn remove(&self) -> Result<(), SetupError> {
        self.remove_table(&self.table)
    }

    /// Removes a table whose host was killed.
    pub(super) fn remove_stale(&self, record: &Record) -> Result<(), SetupError> {
        log::info!("removing table {}, whose host has ended", record.table);
        self.remove_table(&record.table)
    }

    /// What the tables of hosts tell: of this host too, if an earlier one of its name left one.
    pub(super) fn records(&self) -> Result<Vec<Record>, SetupError> {
        let mut records = Vec::new();
        for object in run_list(self.program, &["tables"])? {
            let name = object["table"]["name"].as_str().unwrap_or_default();
            let number = name
                .strip_prefix(TABLES)
                .map(|hex| u32::from_str_radix(hex, 16));
            if let Some(Ok(number)) = number
                && object["table"]["family"] == FAMILY
            {
                records.push(Record {
                    table: name.to_owned(),
                    block: number,
                    is_living: name != self.table && !addresses::is_free(number)?,
                    changed: Changed {
                        families: self.names_in(name, FAMILIES)?,
                        interfaces: self.names_in(name, INTERFACES)?,
                    },
                });
            }
        }
        Ok(records)
    }

    fn names_in(&self, table: &str, set: &str) -> Result<BTreeSet<String>, SetupError> {
        let objects = run_list(self.program, &["set", FAMILY, table, set])?;
        let elements = objects
            .iter()
            .filter_map(|object| object["set"]["elem"].as_array());
        let names = elements.flatten().filter_map(Value::as_str);
        Ok(names.map(str::to_owned).collect())
    }

    fn remove_table(&self, name: &str) -> Result<(), SetupError> {
        let table = table(name);
        // Somebody else may have removed it.
        let commands = [json!({ "add": table }), json!({ "delete": table })];
        self.apply("remove", name, &commands)
    }

    fn apply(&self, verb: &str, table: &str, commands: &[Value]) -> Result<(), SetupError> {
        let text = json!({ "nftables": commands }).to_string();
        let step = format!("nft: {verb} table {FAMILY} {table}");
        run(self.program, &["-f", "-"], &text, &step).map(std::mem::drop)
    }

    /// Chains of other tables that drop what they do not know, children's packets included.
    pub(super) fn other_dropping_chains(&self) -> Result<Vec<String>, SetupError> {
        let objects = run_list(self.program, &["chains"])?;
        Ok(objects
            .iter()
            .filter_map(|object| object.get("chain"))
            .filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop")
            .map(|chain| {
                let word = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
                format!("{} {} {}", word("family"), word("table"), word("name"))
            })
            .collect())
    }
}

/// The rules as commands of `libnftables-json(5)`.
struct Rules<'a> {
    table: &'a str,
    block: &'a Block,
}

impl Rules<'_> {
    fn all(&self, allow: &[Destination], changed: &Changed) -> Vec<Value> {
        let table = table(self.table);
        let mut commands = vec![
            json!({ "add": table }),
            json!({ "delete": table }),
            json!({ "add": table }),
            self.private_set("private_ipv4", "ipv4_addr", |network| {
                matches!(network, IpNet::V4(_))
            }),
            self.private_set("private_ipv6", "ipv6_addr", |network| {
                matches!(network, IpNet::V6(_))
            }),
            self.names(FAMILIES, &changed.families),
            self.names(INTERFACES, &changed.interfaces),
            // Before connections are tracked (priority raw).
            self.hook("prerouting", "filter", -300),
            self.hook("input", "filter", 0),
            self.hook("output", "filter", 0),
            self.hook("forward", "filter", 0),
            // After the routing decision (priority srcnat).
            self.hook("postrouting", "nat", 100),
            self.chain("from_child"),
            self.chain("to_child"),
        ];
        commands.extend(self.against_false_senders());
        commands.extend(self.between_machine_and_children());
        commands.extend(self.forward(changed));
        commands.extend(self.what_children_reach(allow));
        commands.extend(self.what_reaches_children());
        commands.extend(self.masquerade());
        commands
    }

    /// A child sends from the addresses to which there is a route through its own interface: its
    /// pair's, which are in the block.
    fn against_false_senders(&self) -> Vec<Value> {
        let from_child = from(&self.own());
        let ipv6 = match self.block.ipv6 {
            Some(range) => differs(address("ip6", "saddr"), net(range.into())),
            None => is(meta("nfproto"), "ipv6"),
        };
        let no_route_back = json!({ "fib": { "result": "oif", "flags": ["saddr", "iif"] } });
        let ipv4 = differs(address("ip", "saddr"), net(self.block.ipv4.into()));
        vec![
            self.rule("prerouting", &[from_child.clone(), ipv4, drop()]),
            self.rule("prerouting", &[from_child.clone(), ipv6, drop()]),
            self.rule(
                "prerouting",
                &[from_child, is(no_route_back, false), drop()],
            ),
        ]
    }

    /// A child reaches no address of the machine itself, and the machine only answers.
    fn between_machine_and_children(&self) -> Vec<Value> {
        vec![
            self.rule("input", &[from(&self.own()), drop()]),
            self.rule("output", &[to(&self.own()), jump("to_child")]),
        ]
    }

    fn forward(&self, changed: &Changed) -> Vec<Value> {
        let mut rules = vec![
            self.rule("forward", &[from(&self.own()), jump("from_child")]),
            self.rule("forward", &[to(&self.own()), jump("to_child")]),
        ];
        // A machine that forwarded nothing before does so for children alone.
        let every = format!("{ANY_INTERFACE}*");
        for family in &changed.families {
            rules.push(self.rule(
                "forward",
                &[
                    is(meta("nfproto"), family.as_str()),
                    differs(meta("iifname"), every.as_str()),
                    differs(meta("oifname"), every.as_str()),
                    drop(),
                ],
            ));
        }
        rules
    }

    /// What [`destinations::permits`] says, as rules.
    fn what_children_reach(&self, allow: &[Destination]) -> Vec<Value> {
        let (private, public): (Vec<_>, Vec<_>) = allow
            .iter()
            .partition(|entry| destinations::is_private(entry.network));
        // Never to a child, whatever is allowed.
        let mut rules = vec![self.rule("from_child", &[to(&format!("{ANY_INTERFACE}*")), drop()])];
        rules.extend(private.into_iter().map(|entry| self.allowed(entry)));
        for (family, set) in [("ip", "@private_ipv4"), ("ip6", "@private_ipv6")] {
            rules.push(self.rule("from_child", &[is(address(family, "daddr"), set), drop()]));
        }
        if !allow.is_empty() {
            rules.extend(public.into_iter().map(|entry| self.allowed(entry)));
            rules.push(self.rule("from_child", &[drop()]));
        }
        rules
    }

    fn allowed(&self, entry: &Destination) -> Value {
        let family = match entry.network {
            IpNet::V4(_) => "ip",
            IpNet::V6(_) => "ip6",
        };
        let mut rule = vec![
            is(address(family, "daddr"), net(entry.network)),
            is(meta("l4proto"), json!({ "set": ["tcp", "udp"] })),
        ];
        if let Some(port) = entry.port {
            rule.push(is(address("th", "dport"), port));
        }
        rule.push(json!({ "accept": null }));
        self.rule("from_child", &rule)
    }

    /// Only answers, and errors about what it sent.
    fn what_reaches_children(&self) -> Vec<Value> {
        let state = json!({ "ct": { "key": "state" } });
        let answers = json!({ "match":
            { "op": "in", "left": state, "right": ["established", "related"] } });
        vec![
            self.rule("to_child", &[answers, json!({ "accept": null })]),
            self.rule("to_child", &[drop()]),
        ]
    }

    /// A child's port is not kept: the connection table would hand it what is sent to a service of
    /// the machine's at that port.
    fn masquerade(&self) -> Vec<Value> {
        let (first, last) = PORTS;
        let ports = json!({ "masquerade":
            { "port": { "range": [first, last] }, "flags": "fully-random" } });
        let has_ports = is(meta("l4proto"), json!({ "set": WITH_PORTS }));
        let mut from_block = vec![is(address("ip", "saddr"), net(self.block.ipv4.into()))];
        if let Some(range) = self.block.ipv6 {
            from_block.push(is(address("ip6", "saddr"), net(range.into())));
        }
        let mut rules = Vec::new();
        for from_block in from_block {
            let with_ports = [from_block.clone(), has_ports.clone(), ports.clone()];
            rules.push(self.rule("postrouting", &with_ports));
            let others = [from_block, json!({ "masquerade": null })];
            rules.push(self.rule("postrouting", &others));
        }
        rules
    }

    /// The names of this host's interfaces.
    fn own(&self) -> String {
        self.block.interfaces() + "*"
    }

    fn hook(&self, name: &str, kind: &str, priority: i32) -> Value {
        json!({ "add": { "chain": { "family": FAMILY, "table": self.table, "name": name,
            "type": kind, "hook": name, "prio": priority, "policy": "accept" } } })
    }

    fn chain(&self, name: &str) -> Value {
        json!({ "add": { "chain": { "family": FAMILY, "table": self.table, "name": name } } })
    }

    fn private_set(&self, name: &str, kind: &str, is_kind: impl Fn(&IpNet) -> bool) -> Value {
        let networks: Vec<Value> = destinations::private().filter(is_kind).map(net).collect();
        json!({ "add": { "set": { "family": FAMILY, "table": self.table, "name": name,
            "type": kind, "flags": ["interval"], "elem": networks } } })
    }

    /// A set that no rule asks: it keeps what is to be put back. Of text, nftables has but names of
    /// interfaces.
    fn names(&self, name: &str, elements: &BTreeSet<String>) -> Value {
        let mut set = json!({ "family": FAMILY, "table": self.table, "name": name,
            "type": "ifname" });
        if !elements.is_empty() {
            set["elem"] = json!(elements);
        }
        json!({ "add": { "set": set } })
    }

    fn rule(&self, chain: &str, statements: &[Value]) -> Value {
        json!({ "add": { "rule":
            { "family": FAMILY, "table": self.table, "chain": chain, "expr": statements } } })
    }
}

fn table(name: &str) -> Value {
    json!({ "table": { "family": FAMILY, "name": name } })
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

fn address(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

fn net(network: IpNet) -> Value {
    json!({ "prefix": { "addr": network.network().to_string(), "len": network.prefix_len() } })
}

fn is(left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right.into() } })
}

fn differs(left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": "!=", "left": left, "right": right.into() } })
}

fn from(interfaces: &str) -> Value {
    is(meta("iifname"), interfaces)
}

fn to(interfaces: &str) -> Value {
    is(meta("oifname"), interfaces)
}

fn drop() -> Value {
    json!({ "drop": null })
}

fn jump(chain: &str) -> Value {
    json!({ "jump": { "target": chain } })
}

fn find_program() -> Result<&'static str, SetupError> {
    PROGRAMS
        .iter()
        .copied()
        .find(|path| Path::new(path).is_file())
        .ok_or_else(|| {
            check_failed("there is no program nft")
                .hinting("install nftables (Debian: apt-get install nftables)")
        })
}

/// The objects of a list, as `libnftables-json(5)` describes them.
fn run_list(program: &'static str, what: &[&str]) -> Result<Vec<Value>, SetupError> {
    let step = format!("nft: list {}", what.join(" "));
    let text = run(program, &[&["list"], what].concat(), "", &step)?;
    let objects = serde_json::from_slice(&text)
        .ok()
        .and_then(|mut output: Value| match output["nftables"].take() {
            Value::Array(objects) => Some(objects),
            _ => None,
        });
    objects.ok_or_else(|| error(step, Errno::EBADMSG))
}

/// Runs nft with JSON on its standard input, and returns what it writes.
///
/// The standard library starts it with `posix_spawn(3)`, which shares this thread's memory until
/// the program runs; a fork would not have it ([`crate::clone::private_memory`]).
fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
    step: &str,
) -> Result<Vec<u8>, SetupError> {
    let finished = Command::new(program)
        .arg("-j")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(|mut nft| {
            let mut stdin = nft.stdin.take().expect("it is a pipe");
            let written = stdin.write_all(input.as_bytes());
            std::mem::drop(stdin);
            let output = nft.wait_with_output()?;
            // One that ends without reading says why.
            if output.status.success() {
                written?;
            }
            Ok(output)
        })
        .map_err(|source| super::io_error(step, &source))?;
    if finished.status.success() {
        return Ok(finished.stdout);
    }
    let said = String::from_utf8_lossy(&finished.stderr);
    log::debug!("{step}: {}", said.trim());
    let first = said.lines().find(|line| !line.trim().is_empty());
    let step = format!("{step}: {}", first.unwrap_or("it said nothing").trim());
    Err(error(step, errno_in(&said)))
}

/// nft tells errors in words alone.
fn errno_in(said: &str) -> Errno {
    const KNOWN: &[(&str, Errno)] = &[
        ("Operation not permitted", Errno::EPERM),
        ("Operation not supported", Errno::EOPNOTSUPP),
        ("Address family not supported", Errno::EAFNOSUPPORT),
        ("Protocol not supported", Errno::EPROTONOSUPPORT),
        // Of a kernel: a kind of expression or chain that it does not have.
        ("No such file or directory", Errno::ENOENT),
        ("Invalid argument", Errno::EINVAL),
    ];
    let known = KNOWN.iter().find(|(words, _)| said.contains(words));
    known.map_or(Errno::EIO, |(_, errno)| *errno)
}
