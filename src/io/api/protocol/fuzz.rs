//! Properties of the protocol's messages, for requests that are right, nearly right, or anything.
//!
//! Runs on: the I/O thread.
//!
//! Each holds for PROPTEST_CASES random cases, and is tried on for FUZZ_SECONDS if that is set.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use nix::errno::Errno;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::TestCaseError;
use serde_json::{Map, Value, json};

use super::*;
use crate::clone::private_memory;
use crate::fuzzing::{Change, Verdict, holds};
use crate::io::network::VethConfig;
use crate::layer::SetupError;
use crate::sys::messages::LONGEST;

// ---- requests, as docs/protocol.md writes them --------------------------------------------

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,12}",
        select(vec!["", "\0", "/", "..", "\"\\", "\u{1}\u{7f}\u{200b}😀"]).prop_map(str::to_owned)
    ]
}

fn veth() -> impl Strategy<Value = VethConfig> {
    let names = ("[!-~]{0,17}", "[a-z]{1,9}");
    let ipv6 = || option::of(any::<Ipv6Addr>());
    (
        names,
        any::<(Ipv4Addr, Ipv4Addr, u8)>(),
        (ipv6(), ipv6(), any::<u8>()),
    )
        .prop_map(
            |((kernel_veth_name, child_veth_name), ipv4, ipv6)| VethConfig {
                kernel_veth_name,
                child_veth_name,
                kernel_ipv4: ipv4.0,
                child_ipv4: ipv4.1,
                ipv4_prefix: ipv4.2,
                kernel_ipv6: ipv6.0,
                child_ipv6: ipv6.1,
                ipv6_prefix: ipv6.2,
            },
        )
}

fn network() -> impl Strategy<Value = JobNetwork> {
    prop_oneof![
        Just(JobNetwork::None),
        Just(JobNetwork::Loopback),
        Just(JobNetwork::Egress),
        veth().prop_map(JobNetwork::Veth),
    ]
}

fn limits() -> impl Strategy<Value = Map<String, Value>> {
    let keys = vec![
        "wall",
        "output",
        "memory",
        "cpu",
        "pids",
        "open_files",
        "file_size",
    ];
    let pairs = (select(keys).prop_map(str::to_owned), limit());
    vec(pairs, 0..4).prop_map(Map::from_iter)
}

/// Numbers that serde_json reads to the last bit, which it does only for those of few digits.
fn eighths() -> impl Strategy<Value = f64> {
    let few = (-9..50_000i64).prop_map(|n| n as f64);
    let many = (-(1i64 << 44)..1 << 44).prop_map(|n| n as f64);
    prop_oneof![few, many].prop_map(|n| n / 8.0)
}

/// A limit's value, right or wrong.
fn limit() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u64>().prop_map(Value::from),
        (1u64..5000).prop_map(Value::from),
        eighths().prop_map(Value::from),
        "[0-9_]{1,24}(\\.[0-9]{1,3})?(e-?[0-9]{1,10})?[KMGTPE]?i?B?".prop_map(Value::from),
        "([0-9]{1,20} ?(ns|ms|s|m|h|days|y) ?){1,3}".prop_map(Value::from),
        select(vec![
            Value::Null,
            json!(-1),
            json!("1e300"),
            json!("nan"),
            json!({"secs": u64::MAX, "nanos": 0}),
            json!({"secs": 0, "nanos": 0}),
            json!([5, 0]),
        ]),
    ]
}

fn spawn() -> impl Strategy<Value = Spawn> {
    let layers = MAY_SKIP.map(|layer| layer.name().to_owned());
    let layers = subsequence(layers.to_vec(), 0..=MAY_SKIP.len());
    let layers = option::of(
        (layers, vec(text(), 0..3)).prop_map(|(layers, others)| [layers, others].concat()),
    );
    let chroot = option::of(text().prop_map(PathBuf::from));
    let timeout = option::of(prop_oneof![
        eighths().prop_map(Timeout::Seconds),
        "[0-9]{1,4}(s|ms|min|x)".prop_map(Timeout::Text)
    ]);
    let names = (text(), option::of(text()));
    (
        names,
        chroot,
        layers,
        timeout,
        option::of(network()),
        limits(),
        (
            select(vec![ClientForm::Pickle, ClientForm::Json]),
            any::<bool>(),
        ),
    )
        .prop_map(
            |((id, process_name), chroot, skip_except, timeout, network, limits, call)| Spawn {
                id,
                process_name,
                chroot,
                skip_except,
                timeout,
                network,
                limits,
                arguments: call.0,
                result: call.1,
            },
        )
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        1 => any::<u32>().prop_map(|version| Request::Hello { version }),
        8 => spawn().prop_map(|spawn| Request::Spawn(Box::new(spawn))),
        1 => Just(()).prop_map(|()| Request::Close {}),
    ]
}

/// A request as a client writes it. Every key is there.
fn written(request: &Request) -> Value {
    let spawn = match request {
        Request::Hello { version } => return json!({"type": "hello", "version": version}),
        Request::Close {} => return json!({"type": "close"}),
        Request::Spawn(spawn) => spawn,
    };
    let network = spawn.network.as_ref().map(|network| match network {
        JobNetwork::None => json!("none"),
        JobNetwork::Loopback => json!("loopback"),
        JobNetwork::Egress => json!("egress"),
        JobNetwork::Veth(veth) => json!({"veth": {
            "kernel_veth_name": veth.kernel_veth_name, "child_veth_name": veth.child_veth_name,
            "kernel_ipv4": veth.kernel_ipv4, "child_ipv4": veth.child_ipv4,
            "ipv4_prefix": veth.ipv4_prefix,
            "kernel_ipv6": veth.kernel_ipv6, "child_ipv6": veth.child_ipv6,
            "ipv6_prefix": veth.ipv6_prefix,
        }}),
    });
    json!({
        "type": "spawn", "id": spawn.id, "process_name": spawn.process_name,
        "chroot": spawn.chroot, "timeout": spawn.timeout, "network": network,
        "limits": spawn.limits,
        "skip_except": spawn.skip_except,
        "arguments": spawn.arguments, "result": spawn.result,
    })
}

/// A name, where it is written in serde's other spelling: as the key of a null.
fn plain(name: &mut Value) {
    if let Some(object) = name.as_object()
        && let [(key, Value::Null)] = Vec::from_iter(object)[..]
    {
        *name = key.clone().into();
    }
}

/// The same meaning in one form: what is absent is written out, numbers and addresses have one
/// spelling.
fn normal(mut message: Value) -> Value {
    let Some(keys) = message.as_object_mut() else {
        return message;
    };
    if keys.get("type") != Some(&json!("spawn")) {
        return message;
    }
    for (key, value) in written(&Request::Spawn(Box::default()))
        .as_object()
        .expect("it is one")
    {
        keys.entry(key).or_insert_with(|| value.clone());
    }
    if let Some(timeout) = keys.get("timeout").and_then(Value::as_f64) {
        keys.insert("timeout".to_owned(), timeout.into());
    }
    plain(&mut keys["network"]);
    if let Some(veth) = keys["network"]
        .get_mut("veth")
        .and_then(Value::as_object_mut)
    {
        let usual = serde_json::to_value(VethConfig::default()).expect("valid");
        for (key, value) in usual.as_object().expect("an object") {
            let value = veth.entry(key).or_insert_with(|| value.clone());
            if let Some(Ok(address)) = value.as_str().map(str::parse::<Ipv6Addr>) {
                *value = json!(address);
            }
        }
    }
    message
}

// ---- requests that are nearly right -------------------------------------------------------

/// Pieces of JSON that mean something to one decoder or another.
const PIECES: [&str; 16] = [
    "null",
    "{}",
    "[]",
    "[[[[[[[[",
    "{\"a\":",
    "\"type\":",
    "\"spawn\"",
    "1e999",
    "-0",
    "\"\\ud800\"",
    "\u{feff}",
    "\"limits\":{\"wall\":{\"secs\":1,\"nanos\":0}},",
    "\"network\":{\"none\":null},",
    "{\"seccomp\":null}",
    ",",
    "}",
];

/// A request with lists where objects should be, in the order of their keys here.
fn positional(request: &Request) -> Value {
    let list = |object: &Value, keys: &[&str]| -> Value {
        keys.iter().map(|key| object[*key].clone()).collect()
    };
    let mut message = written(request);
    let veth = &message["network"]["veth"];
    if !veth.is_null() {
        message["network"]["veth"] = list(
            veth,
            &[
                "kernel_veth_name",
                "child_veth_name",
                "kernel_ipv4",
                "child_ipv4",
                "ipv4_prefix",
                "kernel_ipv6",
                "child_ipv6",
                "ipv6_prefix",
            ],
        );
        return message;
    }
    let keys: &[_] = match request {
        Request::Hello { .. } => &["type", "version"],
        Request::Close {} => &["type"],
        Request::Spawn(_) => &[
            "type",
            "id",
            "process_name",
            "chroot",
            "skip_except",
            "timeout",
            "network",
            "limits",
            "arguments",
            "result",
        ],
    };
    list(&message, keys)
}

struct Message(Vec<u8>);

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0.escape_ascii().to_string())
    }
}

/// Every kind of message, of the length that the socket lets through.
fn message() -> impl Strategy<Value = Message> {
    let changed = (request(), vec(Change::any(&PIECES), 0..4)).prop_map(|(request, changes)| {
        let mut bytes = written(&request).to_string().into_bytes();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    });
    let positional = request().prop_map(|request| positional(&request).to_string().into_bytes());
    let long = (0..5usize, 1..LONGEST).prop_map(|(kind, length)| {
        let (start, piece, end) = [
            ("{\"type\":\"spawn\",\"limits\":{\"a\":[", "0,", "0]}}"),
            ("{\"type\":\"spawn\",\"limits\":{", "\"a\":[],", "\"b\":0}}"),
            ("{\"type\":\"spawn\",\"id\":\"", "\\u0001", "\"}"),
            ("{\"type\":\"spawn\",\"a\":", "[", ""),
            ("", "\"", ""),
        ][kind];
        let count = length.saturating_sub(start.len() + end.len()) / piece.len();
        [start, &piece.repeat(count), end].concat().into_bytes()
    });
    let odd = select(vec![
        &b"{\"type\":\"kill\"}"[..],
        b"[\"kill\"]",
        b"\"kill\"",
        b"{\"type\":\"spawn\",\"network\":{\"none\":null},\"skip_except\":[{\"seccomp\":null}]}",
    ]);
    prop_oneof![
        1 => vec(any::<u8>(), 0..200),
        8 => changed,
        1 => positional,
        1 => long,
        1 => odd.prop_map(<[u8]>::to_vec),
    ]
    .prop_map(|mut bytes| {
        bytes.truncate(LONGEST);
        Message(bytes)
    })
}

// ---- the properties -----------------------------------------------------------------------

#[test]
fn a_request_is_decoded_as_it_was_meant() {
    holds("requests", request(), |request| {
        let message = written(&request);
        let bytes = message.to_string().into_bytes();
        prop_assume!(bytes.len() <= LONGEST);
        let decoded = Request::decode(&bytes);
        prop_assert_eq!(decoded.as_ref(), Ok(&request));
        // What is null, empty or usual may as well be absent.
        let mut short = message;
        let usual = normal(json!({"type": "spawn"}));
        let keys = short.as_object_mut().expect("a request is an object");
        keys.retain(|key, value| key == "type" || *value != usual[key.as_str()]);
        let bytes = short.to_string().into_bytes();
        prop_assert_eq!(Request::decode(&bytes), Ok(request), "{}", short);
        Ok(())
    });
}

#[test]
fn what_is_decoded_is_what_was_said() {
    holds("messages", message(), |Message(bytes)| {
        if ChildRequest::decode(&bytes).is_ok() {
            let said: Value = serde_json::from_slice(&bytes).expect("it was decoded");
            prop_assert_eq!(said, json!({"type": "kill"}));
        }
        match Request::decode(&bytes) {
            Err(words) => prop_assert!(words.starts_with("not a request: ")),
            Ok(request) => {
                let said: Value = serde_json::from_slice(&bytes).expect("it was decoded");
                prop_assert_eq!(normal(said), written(&request));
                if let Request::Spawn(spawn) = request {
                    is_checked(&spawn)?;
                }
            }
        }
        Ok(())
    });
}

/// What a request's parts come to is within its bounds, or refused.
fn is_checked(spawn: &Spawn) -> Verdict {
    let longest = Duration::from_secs(100 * 365 * 86_400);
    let is_duration = |duration: &Duration| !duration.is_zero() && *duration <= longest;
    prop_assert!(spawn.skipped().iter().all(|layer| MAY_SKIP.contains(layer)));
    if let Ok(Some(timeout)) = spawn.timeout() {
        prop_assert!(is_duration(&timeout), "{:?}", timeout);
    }
    if let Ok(Some(limits)) = spawn.limits(&Limits::default()) {
        prop_assert!(limits.wall.iter().all(is_duration), "{:?}", limits.wall);
        prop_assert!(limits.check().is_ok());
        // The child gets them in this form.
        let json = serde_json::to_string(&limits).expect("limits are valid JSON");
        let again: Limits = serde_json::from_str(&json).expect("as they were");
        prop_assert_eq!(format!("{again:?}"), format!("{limits:?}"));
    }
    if let Ok(Some(JobNetwork::Veth(veth))) = spawn.network() {
        prop_assert!(veth.check().is_ok());
    }
    Ok(())
}

/// On the I/O thread's own heap, which shows the most that was in use at once.
#[test]
fn decoding_takes_memory_in_proportion_to_a_message() {
    const MOST: usize = 16 << 20;
    let (messages, inbox) = sync_channel::<Vec<u8>>(0);
    let (outbox, verdicts) = sync_channel(0);
    let decode_all = move || {
        for bytes in inbox {
            let decoded = catch_unwind(AssertUnwindSafe(|| match Request::decode(&bytes) {
                Ok(Request::Spawn(spawn)) => drop(spawn.limits(&Limits::default())),
                _ => drop(ChildRequest::decode(&bytes)),
            }));
            outbox
                .send((decoded.is_ok(), private_memory::opened()))
                .expect("awaited");
        }
    };
    private_memory::spawn_private_thread(Box::new(decode_all)).expect("memory");
    holds("memory", message(), |Message(bytes)| {
        messages.send(bytes).expect("it listens");
        let (decoded, opened) = verdicts.recv().expect("it answers");
        prop_assert!(decoded, "it panicked");
        prop_assert!(opened <= MOST, "{} bytes", opened);
        Ok(())
    });
    println!("memory: {} KiB at most", private_memory::opened() >> 10);
}

// ---- events -------------------------------------------------------------------------------

/// Short ones, and those that take much more than a message in JSON.
fn words() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        ".{1,3}",
        select(vec!["a", "\n", "\u{1}", "\"", "\u{e9}", "😀"]).prop_map(str::to_owned)
    ];
    let count = prop_oneof![Just(1), 0..20usize, 0..40_000usize, 0..250_000usize];
    (piece, count).prop_map(|(piece, count)| piece.repeat(count))
}

fn report() -> impl Strategy<Value = JobReport> {
    let ending = option::of(prop_oneof![
        (0..256i32).prop_map(Ending::Exited),
        (1..65i32).prop_map(Ending::Signaled),
        Just(Ending::Lost),
    ]);
    let outcome = select(&Outcome::ALL[..]);
    let layers = [
        Layer::SKIPPABLE,
        &[Layer::Descriptors, Layer::Limits, Layer::Network],
    ]
    .concat();
    let refusal = (select(layers), words(), 0..140i32)
        .prop_map(|(layer, step, errno)| SetupError::new(layer, step, Errno::from_raw(errno)));
    let used = any::<(Duration, Duration, u64)>();
    (
        outcome,
        option::of(refusal),
        option::of(words()),
        ending,
        used,
    )
        .prop_map(
            |(outcome, refusal, detail, ending, (wall, cpu, peak_memory))| {
                let report = match refusal {
                    Some(error) => JobReport::refused(error),
                    None => JobReport {
                        detail,
                        ..JobReport::not_run(outcome, "")
                    },
                };
                JobReport {
                    ending,
                    wall,
                    cpu,
                    peak_memory,
                    ..report
                }
            },
        )
}

/// An event as a client reads it, which has these keys and no others.
fn read(bytes: &[u8], keys: &[&str]) -> Result<Value, TestCaseError> {
    prop_assert!(bytes.len() <= LONGEST, "{} bytes", bytes.len());
    let event: Value = serde_json::from_slice(bytes).expect("an event is JSON");
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    let found: Vec<_> = event.as_object().expect("an object").keys().collect();
    prop_assert_eq!(found, keys);
    Ok(event)
}

/// Whether a text has come over: whole if there is room for it, else its beginning and its end.
fn has_come(said: &Value, meant: &str) -> bool {
    let said = said.as_str().expect("a text");
    let room = |text: &str| json!(text).to_string().len();
    if room(meant) <= LONGEST / 3 {
        return said == meant;
    }
    let edge = |text: &str, from: usize, to: usize| -> String {
        text.chars().skip(from).take(to - from).collect()
    };
    let (m, s) = (meant.chars().count(), said.chars().count());
    said == meant
        || edge(said, 0, 1000) == edge(meant, 0, 1000)
            && edge(said, s - 1000, s) == edge(meant, m - 1000, m)
            && room(said) > LONGEST / 3
}

#[test]
fn an_event_on_the_connection_fits_into_a_message() {
    let inputs = (
        words(),
        select(vec!["preload", "setup", "protocol"]),
        any::<(u32, usize)>(),
    );
    holds("events", inputs, |(detail, kind, (pid, children))| {
        let failed = Event::Failed {
            kind,
            detail: &detail,
        }
        .encode();
        let event = read(&failed, &["type", "kind", "detail"])?;
        prop_assert_eq!(
            (&event["type"], &event["kind"]),
            (&json!("failed"), &json!(kind))
        );
        prop_assert!(has_come(&event["detail"], &detail));
        let ready = Event::Ready {
            version: VERSION,
            pid,
        }
        .encode();
        let event = read(&ready, &["type", "version", "pid"])?;
        prop_assert_eq!(event, json!({"type": "ready", "version": 1, "pid": pid}));
        let event = read(&Event::Closing { children }.encode(), &["type", "children"])?;
        prop_assert_eq!(event, json!({"type": "closing", "children": children}));
        Ok(())
    });
}

#[test]
fn an_event_on_a_child_fits_into_a_message() {
    let result = option::of(0..3 * LONGEST_INLINE);
    holds(
        "reports",
        (report(), any::<i32>(), result, any::<bool>()),
        |(mut report, pid, result, wants_result)| {
            report.result = result.map(|length| {
                serde_json::value::to_raw_value(&"x".repeat(length)).expect("text is JSON")
            });
            let event = read(&ChildEvent::Started { pid }.encode(), &["type", "pid"])?;
            prop_assert_eq!(event, json!({"type": "started", "pid": pid}));
            let (outcome, detail, refusal) = (
                report.outcome.name(),
                report.detail.clone(),
                report.refusal.clone(),
            );
            let (ending, used) = (report.ending, (report.wall, report.cpu, report.peak_memory));
            let copy = JobReport {
                ending,
                detail: detail.clone(),
                refusal: refusal.clone(),
                ..JobReport::not_run(report.outcome, "")
            };

            let mut keys = vec![
                "type",
                "status",
                "outcome",
                "detail",
                "wall_ms",
                "cpu_ms",
                "peak_memory_bytes",
            ];
            let (is_long, length) = match result {
                Some(length) => (length + 2 > LONGEST_INLINE, json!(length + 2)),
                None => (false, Value::Null),
            };
            if wants_result {
                keys.push(if is_long { "result_bytes" } else { "result" });
            }
            let event = read(
                &ChildEvent::last(report, true, wants_result).encode(),
                &keys,
            )?;
            if wants_result && is_long {
                prop_assert_eq!(&event["result_bytes"], &length);
            } else if wants_result {
                let came = event["result"].as_str().map(str::len);
                prop_assert_eq!(came, result);
            }
            prop_assert_eq!(
                (&event["type"], &event["outcome"]),
                (&json!("ended"), &json!(outcome))
            );
            match &detail {
                Some(detail) => prop_assert!(has_come(&event["detail"], detail)),
                None => prop_assert!(event["detail"].is_null()),
            }
            let status = event["status"].as_i64().expect("a number") as i32;
            match ending {
                Some(Ending::Exited(code)) => {
                    prop_assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == code);
                }
                Some(Ending::Signaled(signal)) => {
                    prop_assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == signal);
                }
                Some(Ending::Lost) => {
                    prop_assert!(
                        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == NEVER_STARTED
                    );
                }
                None => prop_assert!(libc::WIFSIGNALED(status)),
            }
            let milliseconds = |key: &str| event[key].as_f64().expect("a number");
            prop_assert!(
                (milliseconds("wall_ms") / 1e3 - used.0.as_secs_f64()).abs()
                    <= 1e-9 * used.0.as_secs_f64()
            );
            prop_assert!(
                (milliseconds("cpu_ms") / 1e3 - used.1.as_secs_f64()).abs()
                    <= 1e-9 * used.1.as_secs_f64()
            );
            prop_assert_eq!(&event["peak_memory_bytes"], &json!(used.2));

            let keys = [
                "type", "outcome", "detail", "layer", "step", "errno", "hint",
            ];
            let event = read(&ChildEvent::last(copy, false, wants_result).encode(), &keys)?;
            prop_assert_eq!(
                (&event["type"], &event["outcome"]),
                (&json!("refused"), &json!(outcome))
            );
            prop_assert!(has_come(
                &event["detail"],
                detail.as_deref().unwrap_or_default()
            ));
            match &refusal {
                Some(error) => {
                    prop_assert_eq!(&event["layer"], error.layer.name());
                    let errno = error.errno.map(|errno| errno as i32);
                    prop_assert_eq!(&event["errno"], &json!(errno));
                    prop_assert!(has_come(&event["step"], &error.step));
                }
                None => prop_assert!(
                    ["layer", "step", "errno", "hint"]
                        .iter()
                        .all(|key| event[key].is_null())
                ),
            }
            Ok(())
        },
    );
}
