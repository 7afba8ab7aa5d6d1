"""Children with a way out, on a machine and an internet made of network namespaces.

Nothing outside of these namespaces is touched or asked. The machine is a namespace with an uplink;
behind it is the world, with addresses that stand for the internet (documentation's, which count as
public), a private server, and a metadata service.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from driving import JOBS, NOWHERE
from processes import children_of, host_of, wait_until

pytestmark = pytest.mark.root

PORT = 7000
INTERNET = ["192.0.2.10", "2001:db8::10"]
PRIVATE = ["10.2.3.4", "fd12::4", "64:ff9b::a02:304"]
METADATA = ["169.254.169.254", "fd00:ec2::254"]
MACHINE = ["203.0.113.1", "2001:db8:1::1", "192.168.77.1"]
EGRESS = '[profile.default]\nnetwork = "egress"\n'
# A child with capabilities in its namespaces, and raw sockets, can send what others cannot.
CAPABLE = EGRESS + 'skip_layers = ["drop_capabilities", "seccomp"]\n'


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


class Namespaces:
    def __init__(self):
        self.all = [f"pyspawner-test-{os.getpid()}-{name}" for name in ["machine", "world", "neighbour"]]
        self.machine, self.world, self.neighbour = self.all

    def build(self):
        for name in self.all:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", self.machine, "link", "add", "uplink", "type", "veth", "peer", "machine", "netns", self.world)
        self.add_addresses(self.machine, "uplink", ["203.0.113.1/24", "2001:db8:1::1/64"])
        self.add_addresses(self.machine, "lo", ["192.168.77.1/32"])
        self.add_addresses(self.world, "machine", ["203.0.113.2/24", "2001:db8:1::2/64"])
        self.add_addresses(self.world, "lo", [*INTERNET, *PRIVATE, *METADATA])
        self.add_routes(self.machine, ["default", "::/0"], ["203.0.113.2", "2001:db8:1::2"])
        # With it, what children send without masquerading would be answered too.
        self.add_routes(self.world, ["10.213.0.0/16", "fd70:7973:7061::/48"], ["203.0.113.1", "2001:db8:1::1"])
        # A neighbour would reach the internet if the machine were a router.
        run("ip", "-n", self.machine, "link", "add", "lan", "type", "veth", "peer", "lan", "netns", self.neighbour)
        self.add_addresses(self.machine, "lan", ["198.51.100.1/24", "2001:db8:2::1/64"])
        self.add_addresses(self.neighbour, "lan", ["198.51.100.2/24", "2001:db8:2::2/64"])
        self.add_routes(self.neighbour, ["default", "::/0"], ["198.51.100.1", "2001:db8:2::1"])
        self.add_routes(self.world, ["198.51.100.0/24", "2001:db8:2::/64"], ["203.0.113.1", "2001:db8:1::1"])
        wait_until(lambda: "tentative" not in run("ip", "-n", self.machine, "address"))

    @staticmethod
    def add_addresses(namespace, link, addresses):
        for address in addresses:
            flags = ["nodad"] if ":" in address else []
            run("ip", "-n", namespace, "address", "add", address, "dev", link, *flags)
        run("ip", "-n", namespace, "link", "set", link, "up")

    @staticmethod
    def add_routes(namespace, targets, gateways):
        for target, gateway in zip(targets, gateways, strict=True):
            family = "-6" if ":" in gateway else "-4"
            run("ip", family, "-n", namespace, "route", "add", target, "via", gateway)

    def remove(self):
        for name in self.all:
            subprocess.run(["ip", "netns", "delete", name], check=False)

    @staticmethod
    def enter(namespace):
        return ["nsenter", f"--net=/run/netns/{namespace}", "--"]

    def in_machine(self, *command):
        return run(*self.enter(self.machine), *command)

    def state(self):
        """All that could be left behind: interfaces, addresses, routes, rules, tables, switches."""
        queries = [["address"], ["-4", "route", "show", "table", "all"], ["-6", "route", "show", "table", "all"],
                   ["rule"], ["-6", "rule"]]  # fmt: skip
        texts = [run("ip", "-o", "-n", self.machine, *query) for query in queries]
        switches = self.in_machine("sysctl", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding",
                                   "net.ipv6.conf.uplink.accept_ra")  # fmt: skip
        return [*texts, self.tables(), switches]

    def tables(self):
        return self.in_machine("nft", "list", "tables").split("\n")[:-1]

    def remove_filters(self):
        """All but the masquerading, on which the children's connections depend.

        By rules in front of them: a host whose rules are removed takes its children's way out away.
        """
        [table] = self.tables()
        for chain in ["prerouting", "input", "output", "forward"]:
            self.in_machine("nft", "insert", "rule", *table.split()[1:], chain, "accept")

    @contextmanager
    def server(self, namespace, *words):
        command = [*self.enter(namespace), sys.executable, JOBS / "network_server.py", PORT, *words]
        server = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert server.stdout.readline() == "ready\n"
        try:
            yield server
        finally:
            server.kill()
            server.wait()

    def reach_from(self, namespace, targets):
        program = f"import sys, json; sys.path.insert(0, {str(JOBS)!r}); import network;"
        program += f"print(json.dumps(network.reach({targets!r})))"
        return json.loads(run(*self.enter(namespace), sys.executable, "-c", program))

    def forwards(self):
        """Whether the machine is a router for its neighbours, by family."""
        return self.reach_from(self.neighbour, [["tcp", address, PORT] for address in INTERNET])

    def switch_forwarding(self, value):
        for switch in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]:
            self.in_machine("sysctl", "-q", f"{switch}={value}")


@pytest.fixture(scope="module")
def spaces():
    spaces = Namespaces()
    try:
        spaces.build()
        yield spaces
    finally:
        spaces.remove()


@pytest.fixture
def world(spaces):
    with spaces.server(spaces.world, *INTERNET, *PRIVATE, *METADATA) as server:
        yield server


def targets(addresses):
    return [[protocol, address, PORT] for address in addresses for protocol in ["tcp", "udp"]]


def reach(pyspawner, spaces, wanted, config=EGRESS):
    options = {"config": config, "prefix": spaces.enter(spaces.machine)}
    return pyspawner.value("network.main", "reach", wanted, **options)


def expect(addresses, answer):
    return [answer] * len(targets(addresses))


def test_64_children_reach_the_internet_and_nothing_else(pyspawner, spaces):
    """With the table's filters removed while they live, the same children reach it all."""
    count = 64
    before = spaces.state()
    closed = [*PRIVATE, *METADATA, *MACHINE]
    wanted = [*targets(INTERNET), *targets(closed)]
    jobs = "".join(json.dumps(["meet", ["192.0.2.10", 7100], 7001, wanted]) + "\n" for _ in range(count))
    command = pyspawner.command("map", "network.main", "-j", count, config=CAPABLE, prefix=spaces.enter(spaces.machine))
    with (
        spaces.server(spaces.world, *INTERNET, *PRIVATE, *METADATA, f"meet=7100={count}") as world,
        spaces.server(spaces.machine, "203.0.113.1", "192.168.77.1", "::") as machine,
    ):
        assert spaces.reach_from(spaces.machine, targets([*INTERNET, *closed])) == expect([*INTERNET, *closed], True)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as host:
            host.stdin.write(jobs)
            host.stdin.close()
            assert world.stdout.readline() == "done\n"
            spaces.remove_filters()
            world.stdin.write("go on\n")
            world.stdin.flush()
            results = [json.loads(line) for line in host.stdout]
        seen = {text for server in [world, machine] for text in datagrams_of(server)}
    assert [line["outcome"] for line in results] == ["ok"] * count, results[0]
    results = [line["result"] for line in results]
    assert len({address for result in results for address in result["own"]}) == 2 * count
    siblings = 2
    guarded = [True] * len(targets(INTERNET)) + [False] * (len(targets(closed)) + siblings)
    for result in results:
        assert result["guarded"] == guarded, dict(zip(map(tuple, wanted), result["guarded"], strict=False))
    # One is enough to show that nothing else kept them.
    reached = [any(answers) for answers in zip(*(result["unguarded"] for result in results), strict=True)]
    assert all(reached), [target for target, one in zip(wanted, reached, strict=False) if not one]
    assert {text for text in seen if "guarded" in text} == {
        f"{what} unguarded" for what in ["false IPv4 sender", "false IPv6 sender", "to all neighbours"]
    }
    assert spaces.state() == before


def datagrams_of(server):
    """What a server received, which ends it."""
    server.stdin.close()
    return json.loads(server.stdout.readline())


def test_nobody_reaches_a_child(pyspawner, spaces):
    """Neither the machine nor the world; both can once the table's filters are removed."""
    command = pyspawner.command("map", "network.main", config=CAPABLE, prefix=spaces.enter(spaces.machine), spares=0)
    job = json.dumps(["meet", ["192.0.2.10", 7100], 7001, []])
    knock = "import socket, sys; socket.create_connection((sys.argv[1], 7001), timeout=1).close()"
    with spaces.server(spaces.world, "203.0.113.2", "meet=7100=1") as server:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as host:
            host.stdin.write(job + "\n")
            host.stdin.flush()
            assert server.stdout.readline() == "done\n"
            child = children_of(host_of(host))[0]
            shown = run("nsenter", "-t", child, "-n", "ip", "-o", "-4", "address", "show", "eth0")
            own = shown.split()[3].split("/")[0]
            for namespace in [spaces.machine, spaces.world]:
                knocking = [*spaces.enter(namespace), sys.executable, "-c", knock, own]
                assert b"timed out" in subprocess.run(knocking, capture_output=True, check=False).stderr
            spaces.remove_filters()
            for namespace in [spaces.machine, spaces.world]:
                run(*spaces.enter(namespace), sys.executable, "-c", knock, own)
            server.stdin.write("go on\n")
            server.stdin.flush()
            host.stdin.close()
            host.stdout.read()


def test_only_what_is_allowed(pyspawner, spaces, world):
    config = '[profile.default]\nnetwork = { egress = { allow = ["192.0.2.10:7000", "10.2.3.4"] } }\n'
    wanted = targets(["192.0.2.10", "10.2.3.4", "2001:db8::10", "169.254.169.254"])
    assert reach(pyspawner, spaces, wanted, config) == [True] * 4 + [False] * 4
    other_port = config.replace("7000", "7001")
    assert reach(pyspawner, spaces, wanted, other_port) == [False] * 2 + [True] * 2 + [False] * 4
    assert reach(pyspawner, spaces, targets(INTERNET)) == [True] * 4


def test_a_wide_entry_does_not_open_private_networks(pyspawner, spaces, world):
    config = '[profile.default]\nnetwork = { egress = { allow = ["0.0.0.0/0", "[::/0]:7000", "fd00:ec2::254"] } }\n'
    closed = ["10.2.3.4", "fd12::4", "169.254.169.254"]
    wanted = targets([*INTERNET, "fd00:ec2::254", *closed])
    assert reach(pyspawner, spaces, wanted, config) == [True] * 6 + [False] * 6


def test_none_stays_none(pyspawner, spaces, world):
    before = spaces.state()
    config = '[profile.default]\nnetwork = "none"\n'
    assert reach(pyspawner, spaces, targets(INTERNET), config) == [False] * 4
    assert reach(pyspawner, spaces, targets(["127.0.0.1"]), "") == [False] * 2
    assert spaces.state() == before


@contextmanager
def egress_host(pyspawner, spaces, config=EGRESS, prefix=(), flags=(), **options):
    """A host that waits for jobs, one of which is to be asked for at a time."""
    with tempfile.TemporaryDirectory() as folder:
        # A configuration of its own: another host may be reading the test's just now.
        own = type(pyspawner)(Path(folder))
        prefix = [*prefix, *spaces.enter(spaces.machine)]
        command = own.command("map", "network.main", *flags, config=config, prefix=prefix, spares=0)
        options |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **options) as host:
            try:
                yield host
                if host.poll() is None:
                    host.stdin.close()
                    assert host.wait(timeout=30) == 0
            finally:
                host.kill()


def ask(host, *job):
    host.stdin.write(json.dumps(job) + "\n")
    host.stdin.flush()
    line = json.loads(host.stdout.readline())
    assert line["outcome"] == "ok", line
    return line["result"]


def kill_amid_a_job(host):
    host.stdin.write('["wait", 30]\n')
    host.stdin.flush()
    wait_until(lambda: host_of(host) and children_of(host_of(host)))
    time.sleep(0.3)
    os.kill(host_of(host), signal.SIGKILL)
    host.wait()


def leave_an_interface(spaces, name="pysp-ad50-7"):
    """As a job does that outlives a killed host: it must not come to be without guard."""
    run("ip", "-n", spaces.machine, "link", "add", name, "type", "veth", "peer", "name", "left")


def test_a_killed_host_is_cleaned_up_after(pyspawner, spaces, world):
    """By the next one, also if that has other addresses; meanwhile the machine routes for nobody else."""
    before = spaces.state()
    spaces.switch_forwarding(1)
    assert spaces.forwards() == [True, True]
    spaces.switch_forwarding(0)
    assert spaces.forwards() == [False, False]
    with egress_host(pyspawner, spaces) as host:
        assert ask(host, "reach", [["tcp", "192.0.2.10", PORT]]) == [True]
        assert spaces.forwards() == [False, False]
        kill_amid_a_job(host)
    assert len(spaces.tables()) == 1
    assert spaces.forwards() == [False, False]
    # Interfaces end with their children.
    wait_until(lambda: "pysp-ad" not in run("ip", "-n", spaces.machine, "link"))
    leave_an_interface(spaces)
    elsewhere = EGRESS.replace('"egress"', '{ egress = { ipv4 = "10.214.0.0/16" } }')
    with egress_host(pyspawner, spaces, elsewhere) as host:
        assert ask(host, "reach", [["tcp", "192.0.2.10", PORT]]) == [True]
        assert spaces.tables() == ["table inet pyspawner-ad60"]
        assert "pysp-ad50" not in run("ip", "-n", spaces.machine, "link")
        assert spaces.forwards() == [False, False]
    assert spaces.state() == before


def test_two_hosts_share_a_machine(pyspawner, spaces, world):
    """Whichever ends first, the other's children keep what they need, and the last puts all back."""
    before = spaces.state()
    wanted = targets(INTERNET)
    for last in [0, 1]:
        with ExitStack() as stack:
            stacks = [stack.enter_context(ExitStack()) for _ in range(2)]
            hosts = [own.enter_context(egress_host(pyspawner, spaces)) for own in stacks]
            own = [ask(host, "addresses") for host in hosts]
            assert len({address for pair in own for address in pair}) == 4
            assert len(spaces.tables()) == 2
            stacks[1 - last].close()
            assert len(spaces.tables()) == 1
            assert ask(hosts[last], "reach", wanted) == [True] * len(wanted)
            assert spaces.forwards() == [False, False]
        assert spaces.state() == before


def test_the_last_host_cleans_up_after_a_killed_one(pyspawner, spaces, world):
    before = spaces.state()
    with egress_host(pyspawner, spaces) as last:
        # It has the first block, so that the other's is the second.
        assert ask(last, "reach", [["tcp", "192.0.2.10", PORT]]) == [True]
        with egress_host(pyspawner, spaces) as host:
            kill_amid_a_job(host)
        assert ask(last, "reach", [["tcp", "192.0.2.10", PORT]]) == [True]
        assert len(spaces.tables()) == 2
        leave_an_interface(spaces, "pysp-ad51-7")
    assert "pysp-ad" not in run("ip", "-n", spaces.machine, "link")
    assert spaces.state() == before


def guard_is_lost(pyspawner, spaces, change):
    """What a living child reaches before and after a change of the machine's rules, and how the next one fares."""
    wanted = targets([*INTERNET, *PRIVATE, *METADATA, *MACHINE])
    with (
        spaces.server(spaces.world, *INTERNET, *PRIVATE, *METADATA, "meet=7100=1") as world,
        spaces.server(spaces.machine, *MACHINE),
        egress_host(pyspawner, spaces, flags=["-j", 2], stderr=subprocess.PIPE) as host,
    ):
        host.stdin.write(json.dumps(["reach_later", ["192.0.2.10", 7100], 1.5, wanted]) + "\n")
        host.stdin.flush()
        assert world.stdout.readline() == "done\n"
        spaces.in_machine("nft", change)
        host.stdin.write(json.dumps(["reach", wanted]) + "\n")
        host.stdin.close()
        lines = {line["id"]: line for line in map(json.loads, host.stdout)}
        said = host.stderr.read()
        host.wait(timeout=30)
    return lines["1"], lines["2"], said


@pytest.mark.parametrize("change", ["flush ruleset", "flush chain inet pyspawner-ad50 from_child"])
def test_without_its_table_nobody_has_a_way_out(pyspawner, spaces, change):
    """Whoever removes the guard, in whatever words, closes the way that it guarded."""
    before = spaces.state()
    living, late, said = guard_is_lost(pyspawner, spaces, change)
    assert living["outcome"] == "ok", living
    guarded = [True] * 4 + [False] * len(targets([*PRIVATE, *METADATA, *MACHINE]))
    assert living["result"] == [guarded, [False] * len(guarded)]
    assert late["outcome"] == "setup_failed", late
    for text in [late["detail"], said]:
        assert "another program removed the table inet pyspawner-ad50" in text and "restart pyspawner" in text
    assert spaces.state() == before


def test_another_programs_rules_may_come_and_go(pyspawner, spaces):
    before = spaces.state()
    change = "add table inet other { chain c { accept; }; }; flush table inet other; delete table inet other"
    living, late, said = guard_is_lost(pyspawner, spaces, change)
    guarded = [True] * 4 + [False] * len(targets([*PRIVATE, *METADATA, *MACHINE]))
    assert living["result"] == [guarded, guarded]
    assert late["result"] == guarded
    assert "removed" not in said
    assert spaces.state() == before


def test_a_child_does_not_choose_the_port_that_the_world_sees(pyspawner, spaces, world):
    """Else the connection table would hand it what the world sends to a service of the machine's there."""
    wanted = targets(INTERNET)
    here = json.loads(run(*spaces.enter(spaces.machine), sys.executable, "-c", SEEN.format(JOBS, wanted)))
    assert here == [51820] * len(wanted)
    seen = pyspawner.value(
        "network.main", "ports_seen", 51820, wanted, config=EGRESS, prefix=spaces.enter(spaces.machine)
    )
    assert all(61000 <= port <= 65535 for port in seen), seen


SEEN = "import sys; sys.path.insert(0, '{}'); import network; print(network.ports_seen(51820, {}))"


def test_the_first_packet_is_not_lost(pyspawner, spaces, world):
    """Also while other network namespaces come and go, which keeps the kernel from raising new interfaces."""
    churn = "while :; do unshare --net sh -c 'ip link add one type veth peer name other; ip link set one up'; done"
    with subprocess.Popen(["sh", "-c", churn]) as other:
        try:
            wanted = [["udp", address, PORT] for address in INTERNET]
            done = pyspawner.map("network.main", [["reach", wanted]] * 100, "-j", 2, config=EGRESS,
                                 prefix=spaces.enter(spaces.machine))  # fmt: skip
        finally:
            other.kill()
    assert [line["result"] for line in done.lines] == [[True, True]] * 100


def test_what_forwarded_before_forwards_on(pyspawner, spaces, world):
    spaces.switch_forwarding(1)
    before = spaces.state()
    with egress_host(pyspawner, spaces) as host:
        assert ask(host, "reach", targets(INTERNET)) == [True] * 4
        assert spaces.forwards() == [True, True]
    assert spaces.state() == before
    spaces.switch_forwarding(0)
    spaces.in_machine("sysctl", "-q", "net.ipv6.conf.uplink.accept_ra=1")


def test_an_interrupted_host_leaves_nothing(pyspawner, spaces, world):
    before = spaces.state()
    command = pyspawner.command("map", "network.main", config=EGRESS, prefix=spaces.enter(spaces.machine), spares=0)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as host:
        host.stdin.write('["wait", 30]\n')
        host.stdin.flush()
        wait_until(lambda: host_of(host) and children_of(host_of(host)) and spaces.tables())
        os.kill(host_of(host), signal.SIGTERM)
        assert host.wait(timeout=20) == 128 + signal.SIGTERM
    assert spaces.state() == before


def test_more_children_than_addresses(pyspawner, spaces):
    """The one for which none is left is refused, and the others go on."""
    config = EGRESS.replace('"egress"', '{ egress = { ipv4 = "10.213.0.0/28", ipv6 = "none" } }')
    done = pyspawner.map("network.main", [["wait", 2]] * 5, "-j", 5, config=config, spares=0,
                         prefix=spaces.enter(spaces.machine))  # fmt: skip
    assert sorted(line["outcome"] for line in done.lines) == ["ok"] * 4 + ["setup_failed"], done
    [refused] = [line["detail"] for line in done.lines if line["outcome"] != "ok"]
    assert "every address of 10.213.0.0/28 is in use" in refused


@pytest.mark.parametrize(
    ("arrange", "words"),
    [
        ("for program in /usr/sbin/nft /sbin/nft; do mount --bind /dev/null $program; done", "install nftables"),
        ("mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys", "turn forwarding on before"),
        (
            "mount -t tmpfs t /mnt; printf '#!/bin/sh\\necho Error: no such luck >&2; exit 1' > /mnt/nft; "
            "chmod +x /mnt/nft; mount --bind /mnt/nft /usr/sbin/nft",
            "list tables: Error: no such luck",
        ),
    ],
)
def test_what_the_machine_lacks_is_told(pyspawner, spaces, arrange, words):
    before = spaces.state()
    prefix = [*spaces.enter(spaces.machine), "unshare", "-m", "sh", "-c", f'{arrange}; exec "$@"', "-"]
    done = pyspawner.map("network.main", [["addresses"]], config=EGRESS, prefix=prefix)
    assert done.status == 125 and done.stdout == ""
    assert words in done.stderr, done.stderr
    assert spaces.state() == before


def test_names_are_resolved_where_the_profile_says(pyspawner, spaces, world, tmp_path):
    config = '[profile.default]\nnetwork = { egress = { nameservers = ["192.0.2.10", "2001:db8::10"] } }\n'
    options = {"prefix": spaces.enter(spaces.machine)}

    def content(config):
        return pyspawner.value("network.main", "read", "/etc/resolv.conf", config=config, **options)

    assert content(config) == "nameserver 192.0.2.10\nnameserver 2001:db8::10\n"
    own = tmp_path / "resolv.conf"
    own.write_text("nameserver 192.0.2.1\noptions ndots:2\n")
    by_path = f'[profile.default]\nnetwork = {{ egress = {{ resolv_conf = "{own}" }} }}\n'
    assert content(by_path) == own.read_text()
    assert content(EGRESS) == Path("/etc/resolv.conf").read_text()


def test_a_root_of_another_kind_has_the_resolver_too(pyspawner, spaces, open_folder):
    """A job that needs nothing of the interpreter's files can do without them."""
    egress = 'network = { egress = { nameservers = ["192.0.2.10"] } }'
    options = {"prefix": spaces.enter(spaces.machine)}
    empty = f"[profile.default]\nroot = {{ empty = true }}\n{egress}\n"
    root = open_folder / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/resolv.conf").write_text("of the folder\n")
    chroot = f'[profile.default]\nroot = {{ chroot = "{root}" }}\n{egress}\n'
    for config in [empty, chroot]:
        text = pyspawner.value("network.main", "read", "/etc/resolv.conf", config=config, **options)
        assert text == "nameserver 192.0.2.10\n"
    assert (root / "etc/resolv.conf").read_text() == "of the folder\n"
    # A chroot is its owner's: nothing is made in it, and no link of a job's is followed.
    (root / "etc/resolv.conf").unlink()
    line = pyspawner.map("network.main", [["read", "/etc/resolv.conf"]], config=chroot, **options)
    assert line.status == 125 and "/etc/resolv.conf" in line.stderr, line
    (root / "etc/resolv.conf").symlink_to("/etc/other")
    (root / "etc/other").write_text("other\n")
    text = pyspawner.value("network.main", "read", "/etc/resolv.conf", config=chroot, **options)
    assert text == "nameserver 192.0.2.10\n"
    assert pyspawner.value("network.main", "read", "/etc/other", config=chroot, **options) == "other\n"


def test_where_the_machine_has_a_link_it_is_covered(pyspawner, spaces, open_folder):
    """As with systemd-resolved, whose link leads into /run."""
    etc = open_folder / "etc"
    arrange = f'cp -a /etc {etc} && ln -sf ../run/resolve/stub {etc}/resolv.conf && mount --bind {etc} /etc; exec "$@"'
    prefix = [*spaces.enter(spaces.machine), "unshare", "-m", "sh", "-c", arrange, "-"]
    config = '[profile.default]\nnetwork = { egress = { nameservers = ["192.0.2.10"] } }\n'
    text = pyspawner.value("network.main", "read", "/etc/resolv.conf", config=config, prefix=prefix)
    assert text == "nameserver 192.0.2.10\n"


def test_without_the_capability_it_says_so(pyspawner, spaces):
    prefix = [*spaces.enter(spaces.machine), "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    before = spaces.state()
    done = pyspawner.map("network.main", [["addresses"]], config=EGRESS, prefix=prefix)
    assert done.status == 125
    assert done.stdout == ""
    assert "network: " in done.stderr and "Operation not permitted" in done.stderr, done.stderr
    assert "CAP_NET_ADMIN" in done.stderr
    assert spaces.state() == before


@pytest.mark.parametrize(
    ("egress", "words"),
    [
        ('{ allow = ["example.org"] }', "no destination"),
        ('{ ipv4 = "192.0.2.0/24" }', "private network"),
        ('{ ipv6 = "2001:db8::/48" }', "private network"),
        ('{ nameservers = ["127.0.0.53"] }', "cannot reach 127.0.0.53"),
        (f'{{ resolv_conf = "{NOWHERE}" }}', "not a file"),
        ("{ alow = [] }", "unknown field"),
    ],
)
def test_settings_that_cannot_work_are_refused(pyspawner, egress, words):
    config = f"[profile.default]\nnetwork = {{ egress = {egress} }}\n"
    done = pyspawner.map("network.main", [["addresses"]], config=config)
    assert done.status == 125
    assert words in done.stderr


def test_a_dropping_chain_of_another_table_is_pointed_out(pyspawner, spaces, world):
    rules = "table ip other { chain forward { type filter hook forward priority 0; policy drop; }; }"
    spaces.in_machine("nft", rules)
    try:
        done = pyspawner.map("network.main", [["reach", targets(["192.0.2.10"])]], config=EGRESS,
                             prefix=spaces.enter(spaces.machine))  # fmt: skip
    finally:
        spaces.in_machine("nft", "delete", "table", "ip", "other")
    assert done.lines[0]["result"] == [False, False]
    assert "ip other forward" in done.stderr
    assert reach(pyspawner, spaces, targets(["192.0.2.10"])) == [True, True]


# ---- interfaces that callers name --------------------------------------------------------------

NAMED = """
import os, subprocess, sys, threading, time
sys.path.insert(0, {python!r})
import pyspawner

def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout

def interfaces(*words):
    lines = ip(*words, "-o", "link").splitlines()
    return {{line.split(": ")[1].split("@")[0]: int(line.split(": ")[0]) for line in lines}}

IDLE = ["read", "/dev/null"]

def host(**options):
    return pyspawner.Client(child_main="network.main", **options)

def start(client, seconds, **names):
    config = pyspawner.SandboxConfig(network=pyspawner.NetworkConfig(**names))
    return client.spawn_child(["wait", seconds] if seconds else IDLE, sandbox_config=config)

def refusal(*args, **names):
    try:
        start(*args, **names)
    except pyspawner.SandboxSetupError as error:
        return str(error)

ip("link", "set", "lo", "up")
before = set(interfaces())
"""


def play(program, *prefix):
    """Run a program that asks hosts for named interfaces, in a network namespace of its own."""
    text = NAMED.format(python=str(Path(__file__).parent.parent / "python")) + program
    return run("unshare", "--net", *prefix, sys.executable, "-c", text, cwd=JOBS, timeout=100)


def test_two_hosts_and_one_name():
    play("""
with host() as first, host() as second:
    child = start(first, 60)
    there = interfaces()
    for other in [first, second]:
        refused = refusal(other, 0)
        assert "veth-pyspawn is another child's: EBUSY: " in refused, refused
        assert "; hint: children that live at the same time" in refused, refused
    assert interfaces() == there
    inside = subprocess.run(["nsenter", "-t", str(child.pid), "-n", "ip", "-o", "link"], capture_output=True, text=True)
    assert "veth-pyspawn-c" in inside.stdout
    # The name is free as soon as the child has ended.
    child.kill()
    child.wait()
    assert start(second, 0).wait()[1] == 0
    assert start(first, 0).wait()[1] == 0
assert set(interfaces()) == before
""")


def test_interfaces_of_others_are_not_deleted():
    play("""
ip("link", "add", "docker0-veth", "type", "veth", "peer", "name", "other")
there = interfaces()
with host() as client:
    refused = refusal(client, 0, kernel_veth_name="docker0-veth")
    assert "docker0-veth is not pyspawner's: EEXIST: " in refused, refused
    assert "; hint: choose another kernel_veth_name" in refused, refused
    refused = refusal(client, 0, kernel_veth_name="pysp-ad50-2")
    assert "pysp-ad50-2" in refused and "egress" in refused, refused
    assert start(client, 0, kernel_veth_name="pyspawn0").wait()[1] == 0
assert interfaces() == there
""")


def test_stale_interfaces_are_deleted():
    """As a killed host may leave them: nobody shows that the name is in use."""
    play("""
for name in ["veth-a", "veth-b"]:
    ip("link", "add", name, "address", "02:70:79:73:70:61", "type", "veth", "peer", "name", name + "-peer")
# One that pyspawner 1.0.0 has left has another address, and that package's own name.
ip("link", "add", "veth-pyspawn", "type", "veth", "peer", "name", "left")
with host() as client:
    stale = interfaces()
    for name in ["veth-a", "veth-pyspawn"]:
        child = start(client, 60, kernel_veth_name=name)
        assert interfaces()[name] != stale[name]
        child.kill()
        child.wait()
assert set(interfaces()) == before
""")


def test_a_failing_start_leaves_no_interface():
    """The address cannot be added where IPv6 is off; the pair is made by then."""
    play("""
open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w").write("1")
with host() as client:
    refused = refusal(client, 0, kernel_ipv6_address="fd00::1", child_ipv6_address="fd00::2")
    assert "add the address fd00::1" in refused, refused
    assert set(interfaces()) == before
    assert start(client, 0).wait()[1] == 0
""")


def test_an_end_of_a_named_interface_holds_up_nobody():
    """Deleting one takes the kernel some 30 ms, in which its host would do nothing else."""
    play("""
def median_of(count):
    times = []
    for _ in range(count):
        begin = time.monotonic()
        client.spawn_child(IDLE).wait()
        times.append(time.monotonic() - begin)
    return sorted(times)[count // 2]

def name_interfaces():
    number = 0
    while not enough:
        number += 1
        octet = number % 200
        start(client, 0, kernel_veth_name=f"veth-{number}", kernel_ipv4_address=f"192.168.{octet}.1",
              child_ipv4_address=f"192.168.{octet}.2").wait()

with host() as client:
    alone, enough = median_of(30), []
    thread = threading.Thread(target=name_interfaces)
    thread.start()
    beside = median_of(60)
    enough.append(True)
    thread.join()
    print(alone, beside)
assert set(interfaces()) == before
""")
