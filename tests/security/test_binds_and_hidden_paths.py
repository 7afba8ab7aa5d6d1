"""What a profile adds to the children's root, and what it takes out."""

import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from driving import NOWHERE, PLACE

JOBS = Path(__file__).parent / "jobs"


def profile(**keys):
    def toml(value):
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + " }"
        if isinstance(value, list):
            return "[" + ", ".join(map(toml, value)) + "]"
        return json.dumps(str(value) if isinstance(value, Path) else value)

    return "[profile.default]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in keys.items())


def job(pyspawner, name, *args, **keys):
    return pyspawner.value(f"files.{name}", *map(str, args), path=JOBS, config=profile(**keys))


@pytest.fixture
def data(open_folder):
    folder = open_folder / "data"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "file").write_text("content")
    (folder / "file").chmod(0o666)
    return folder


def test_a_bind_shows_a_folder_read_only(pyspawner, data):
    binds = [{"source": data, "target": PLACE}]
    assert job(pyspawner, "read", f"{PLACE}/file", binds=binds) == "content"
    assert set(job(pyspawner, "all_of", PLACE, binds=binds).values()) <= {"EROFS", "EACCES", "EEXIST", "EXDEV"}
    assert [path.name for path in data.iterdir()] == ["file"]


def test_a_writable_bind_can_be_written(pyspawner, data):
    binds = [{"source": data, "writable": True}]
    changes = job(pyspawner, "all_of", data, binds=binds)
    assert set(changes.values()) - {"ok"} <= {"ENOENT"}, changes
    assert not (data / "file").exists()


def test_a_bind_of_a_file_and_one_below_tmp(pyspawner, data):
    binds = [
        {"source": data / "file", "target": "/tmp/here/file", "writable": True},
        {"source": data, "target": "/tmp/there"},
    ]
    assert job(pyspawner, "write", "/tmp/here/file", binds=binds) == "ok"
    assert (data / "file").read_text() == "owned"
    assert job(pyspawner, "write", "/tmp/there/file", binds=binds) in ("EROFS", "EACCES")
    assert job(pyspawner, "write", "/tmp/free", binds=binds) == "ok"


@pytest.mark.parametrize("trick", ["through_symlink", "through_dotdot"])
def test_links_in_a_writable_bind_lead_nowhere_else(pyspawner, data, open_folder, trick):
    outside = open_folder / "outside"
    outside.write_text("of the host")
    outside.chmod(0o666)
    binds = [{"source": data, "target": PLACE, "writable": True}]
    result = job(pyspawner, trick, PLACE, outside, binds=binds)
    assert outside.read_text() == "of the host" and "ok" not in result[-1:], result
    # The control: into what is bound, the same link leads.
    assert job(pyspawner, "write", f"{PLACE}/file", binds=binds) == "ok"


def test_a_link_that_a_job_left_does_not_lead_the_next_one_out(pyspawner, data):
    """And the host itself follows none when it prepares the next run."""
    binds = [{"source": data, "target": PLACE, "writable": True}]
    job(pyspawner, "through_symlink", PLACE, "/etc/shadow", binds=binds)
    assert job(pyspawner, "read", f"{PLACE}/link", binds=binds) in ("", "EACCES", "ENOENT")


@pytest.mark.parametrize(
    "bind, words",
    [
        ({"source": NOWHERE}, "does not exist"),
        ({"source": "etc"}, "absolute"),
        ({"source": "/etc", "target": "/a/../b"}, '".."'),
        ({"source": "/etc", "target": "/proc"}, "made by pyspawner"),
        ({"source": "/etc", "target": NOWHERE}, "must exist"),
    ],
)
def test_binds_that_cannot_be_are_refused(pyspawner, bind, words):
    done = pyspawner.map("files.whoami", [[]], path=JOBS, config=profile(binds=[bind]))
    assert (done.status, done.stdout) == (125, "") and words in done.stderr, done.stderr


def test_a_bind_within_a_writable_one_is_refused(pyspawner, data):
    """A job could move the folders between them, and put a link in their place."""
    binds = [{"source": data, "writable": True}, {"source": data / "file", "target": data / "a/file"}]
    done = pyspawner.map("files.whoami", [[]], path=JOBS, config=profile(binds=binds))
    assert done.status == 125 and "which jobs can write to" in done.stderr, done.stderr


def test_a_bind_of_a_folder_does_not_show_what_is_hidden_in_it(pyspawner, data):
    keys = {"hide": [data / "file"], "binds": [{"source": data, "target": PLACE}]}
    assert job(pyspawner, "read", f"{PLACE}/file", **keys) == ""
    assert job(pyspawner, "read", data / "file", **keys) == ""


def test_a_writable_folder_under_another_name_can_be_used_fully(pyspawner, data):
    binds = [{"source": data, "target": "/in/here", "writable": True}]
    changes = job(pyspawner, "all_of", "/in/here", root={"empty": True}, binds=binds)
    assert changes["make"] == changes["fifo"] == changes["write"] == "ok", changes


def test_an_empty_root_has_only_what_is_bound(pyspawner, data):
    keys = {"root": {"empty": True}, "binds": [{"source": data, "target": "/in/the/data"}]}
    assert job(pyspawner, "listing", "/", **keys) == ["dev", "etc", "in", "proc", "tmp"]
    assert job(pyspawner, "read", "/in/the/data/file", **keys) == "content"
    assert job(pyspawner, "write", "/new", **keys) in ("EROFS", "EACCES")
    assert job(pyspawner, "write", "/tmp/new", **keys) == "ok"
    # The sandbox's user, and nobody of the host's.
    assert job(pyspawner, "listing", "/etc", **keys) == ["group", "passwd"]
    assert str(Path.home()) not in job(pyspawner, "read", "/etc/passwd", **keys)
    assert job(pyspawner, "write", "/etc/passwd", **keys) in ("EROFS", "EACCES")


def test_hidden_files_and_folders(pyspawner, data):
    inside = data / "folder"
    inside.mkdir()
    (inside / "secret").write_text("x")
    inside.chmod(0o755)
    hide = [data / "file", inside]
    assert job(pyspawner, "read", data / "file", hide=hide) == ""
    assert job(pyspawner, "listing", inside, hide=hide) == []
    assert job(pyspawner, "append", data / "file", hide=hide) in ("EROFS", "EACCES")
    # The control.
    assert job(pyspawner, "read", data / "file") == "content"
    assert job(pyspawner, "listing", inside) == ["secret"]


@pytest.mark.parametrize("what", ["folder", "file", "chroot"])
def test_a_link_that_others_may_have_made_leads_to_no_source(pyspawner, open_folder, what):
    """An earlier job, say, in a folder that it could write to; or anybody, in /tmp."""
    wanted = open_folder / ("wanted" if what != "file" else "wanted-file")
    wanted.write_text("x") if what == "file" else wanted.mkdir()
    others = open_folder / "others"
    others.mkdir()
    link = others / "link"
    link.symlink_to(wanted)
    keys = {"root": {"chroot": link}} if what == "chroot" else {"binds": [{"source": link, "target": "/tmp/shown"}]}

    def run():
        return pyspawner.map("files.listing", [["/"]], path=JOBS, config=profile(**keys))

    assert run().lines[0]["outcome"] == "ok"  # the control: root's own link
    others.chmod(0o777)
    done = run()
    assert done.status == 125 and "others may have made the link link on the way" in done.stderr, done


def test_a_link_to_a_secret_does_not_show_it(pyspawner, data):
    (data / "link").symlink_to(data / "file")
    assert job(pyspawner, "read", data / "file", hide=[data / "link"]) == ""


def test_a_bind_shows_a_part_of_what_is_hidden(pyspawner, data):
    keys = {"hide": [data.parent], "binds": [{"source": data / "file"}]}
    assert job(pyspawner, "read", data / "file", **keys) == "content"
    assert job(pyspawner, "listing", data, **keys) == ["file"]


class Host:
    """A `map` host that reads one path after another."""

    def __init__(self, pyspawner, config):
        command = pyspawner.command("map", "files.read", "-j", "1", path=JOBS, config=config)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def read(self, path):
        self.process.stdin.write(json.dumps([str(path)]).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["result"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=20)


def replace(path, text):
    """As editors and `passwd` save: by renaming a new file over the old one."""
    new = path.with_name("new")
    new.write_text(text)
    new.rename(path)


def test_hidden_files_that_the_host_replaces_or_makes_stay_hidden(pyspawner, data):
    secret, plain, later, folder = data / "secret", data / "plain", data / "later", data / "folder"
    for path in (secret, plain):
        path.write_text("first")
    with Host(pyspawner, profile(hide=[secret, later, folder])) as host:
        assert (host.read(secret), host.read(plain)) == ("", "first")
        for number in range(3):
            replace(secret, f"second {number}")
            replace(plain, f"second {number}")
            # The control: what is not hidden shows its new content.
            assert (host.read(secret), host.read(plain)) == ("", f"second {number}")
        later.write_text("made")
        folder.mkdir()
        (folder / "file").write_text("made")
        assert (host.read(later), host.read(folder / "file")) == ("", "ENOENT")
        secret.unlink()
        assert host.read(secret) == "ENOENT"
        secret.mkdir()
        (secret / "file").write_text("a folder now")
        assert host.read(secret / "file") == "ENOENT"
        folder.rename(data / "old")
        folder.mkdir()
        (folder / "file").write_text("another")
        assert host.read(folder / "file") == "ENOENT"


@pytest.mark.parametrize("spares", [0, 1])
def test_what_is_made_in_folders_that_are_made_later_is_hidden(pyspawner, data, spares):
    config = f"[pool]\nspares = {spares}\n"
    secret, plain = data / "a/b/secret", data / "a/b/plain"
    with Host(pyspawner, config + profile(hide=[secret])) as host:
        for folder in (data / "a", data / "a/b"):
            assert (host.read(secret), host.read(plain)) == ("ENOENT", "ENOENT")
            folder.mkdir()
        for path in (secret, plain):
            path.write_text("made")
        assert (host.read(secret), host.read(plain)) == ("", "made")
        (data / "a").rename(data / "c")
        shutil.copytree(data / "c", data / "a")
        assert (host.read(secret), host.read(plain)) == ("", "made")


def test_a_secret_behind_a_link_that_moves_stays_hidden(pyspawner, data):
    """As Kubernetes renews mounted secrets: token -> ..data/token, ..data -> ..1, then ..2."""
    for number in "12":
        (data / f"..{number}").mkdir()
        (data / f"..{number}/token").write_text(f"token {number}")
    (data / "..data").symlink_to("..1")
    (data / "token").symlink_to("..data/token")
    with Host(pyspawner, profile(hide=[data / "token"])) as host:
        assert host.read(data / "token") == ""
        (data / "..new").symlink_to("..2")
        (data / "..new").rename(data / "..data")
        assert host.read(data / "token") == ""
    with Host(pyspawner, profile()) as host:
        assert host.read(data / "token") == "token 2"


def test_what_a_bind_shows_stays_hidden_in_it_too(pyspawner, data):
    keys = {"hide": [data / "file"], "binds": [{"source": data, "target": PLACE}]}
    with Host(pyspawner, profile(**keys)) as host:
        replace(data / "file", "second")
        assert (host.read(f"{PLACE}/file"), host.read(data / "file")) == ("", "")
    root = {"root": {"empty": True}}
    with Host(pyspawner, profile(**root, **keys)) as host:
        assert host.read(f"{PLACE}/file") == ""
        replace(data / "file", "third")
        assert host.read(f"{PLACE}/file") == ""


def test_hidden_files_stay_hidden_whatever_the_timing(pyspawner, data):
    """The host replaces a file as fast as it can; no job fails for it, and what is left is hidden."""
    secret = data / "secret"
    secret.write_text("first")
    ended = threading.Event()

    def replace_for_ever():
        for number in itertools.count():
            replace(secret, f"number {number}")
            if ended.is_set():
                return

    with Host(pyspawner, profile(hide=[secret])) as host:
        host.read(secret)
        replacing = threading.Thread(target=replace_for_ever)
        replacing.start()
        for _ in range(200):
            host.read(secret)  # fails if there is no result; a job sees what is replaced while it runs
        ended.set()
        replacing.join()
        assert host.read(secret) == ""
        for number in range(3):
            replace(secret, f"last {number}")
            assert host.read(secret) == ""


LINKS = ["/", "/usr", "later", "/proc/self/root", "../outside", str(Path(os.__file__).parent)]


@pytest.mark.parametrize("target", LINKS)
def test_links_that_jobs_leave_at_hidden_names_mislead_nobody(pyspawner, data, target):
    """The host looks at these names before each clone, and at the next start."""
    keys = {"hide": [data / "later"], "binds": [{"source": data, "writable": True}]}
    for _ in range(2):
        jobs = [["/", "/nothing"], [str(data / "later"), target], ["/", "/nothing"], ["/", "/nothing"]]
        done = pyspawner.map("files.link_and_look", jobs, "-j", "1", "--ordered", path=JOBS, config=profile(**keys))
        before, _, *after = (line["result"] for line in done.lines)
        assert before["looks"] == after[0]["looks"] == after[1]["looks"], done
    # The control: a link to something that is not there is a link like any other.
    assert (data / "later").is_symlink()


def test_what_a_job_moves_in_a_writable_bind_stays_hidden(pyspawner, data):
    (data / "folder/inner").mkdir(parents=True)
    for folder in (data / "folder", data / "folder/inner"):
        folder.chmod(0o777)
    secret = data / "folder/inner/secret"
    secret.write_text("secret")
    (data / "free").mkdir(mode=0o777)
    (data / "free").chmod(0o777)
    keys = {"hide": [secret], "binds": [{"source": data, "writable": True}]}
    for folder in (data / "folder", data / "folder/inner"):
        assert job(pyspawner, "rename", folder, data / "moved", **keys) in ("EBUSY", "EXDEV")
    assert job(pyspawner, "read", secret, **keys) == ""
    # The control: what holds nothing hidden can be moved.
    assert job(pyspawner, "rename", data / "free", data / "moved", **keys) == "ok"


@pytest.fixture
def home():
    """A folder that is the caller's home, where homes may be."""
    with tempfile.TemporaryDirectory(dir="/srv") as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "data").mkdir()
        for path in (Path(folder), Path(folder) / "data"):
            path.chmod(0o777)
        (Path(folder) / "file").write_text("content")
        yield Path(folder)


@pytest.mark.root
@pytest.mark.parametrize("part", ["", "data"])
def test_a_writable_bind_of_a_home_is_writable(pyspawner, home, part):
    prefix = ["env", f"HOME={home}"]

    def write(config):
        job = [[str(home / part / "new")]]
        return pyspawner.map("files.write", job, path=JOBS, config=config, prefix=prefix).lines[0]["result"]

    assert write(profile(binds=[{"source": home / part, "writable": True}])) == "ok"
    (home / part / "new").unlink()
    assert write("") in ("ENOENT", "EROFS", "EACCES")


def test_a_bind_of_a_hidden_path_shows_it_under_all_its_names(pyspawner, data):
    (data.parent / "alias").symlink_to(data)
    keys = {"hide": [data, data.parent / "alias"], "binds": [{"source": data / "file", "target": PLACE}]}
    del keys["binds"]
    binds = [{"source": data / "file"}]
    assert job(pyspawner, "read", data / "file", hide=keys["hide"], binds=binds) == "content"
    # /run, of which /var/run is another name, is hidden by default.
    shown = job(pyspawner, "listing", "/run", binds=[{"source": "/run"}])
    assert shown == sorted(os.listdir("/run")) and job(pyspawner, "listing", "/run") == []


def test_a_link_to_what_a_bind_shows_hides_it_there(pyspawner, data):
    (data / "link").symlink_to(data / "file")
    keys = {"hide": [data / "link"], "binds": [{"source": data, "target": PLACE}]}
    assert job(pyspawner, "read", f"{PLACE}/file", **keys) == ""


def test_what_is_both_hidden_and_bound_is_refused(pyspawner, data):
    config = profile(hide=[data], binds=[{"source": data}])
    done = pyspawner.map("files.whoami", [[]], path=JOBS, config=config)
    assert done.status == 125 and "which shows it" in done.stderr, done


@pytest.mark.root
def test_a_working_directory_that_is_a_home_is_hidden_with_a_warning(pyspawner, home):
    def run(*flags, variable=home):
        done = subprocess.run(
            pyspawner.command("map", "files.listing", *flags, path=JOBS),
            input=json.dumps([str(home)]).encode(), capture_output=True, cwd=home, env={**os.environ, "HOME": str(variable)}, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)["result"], done.stderr.decode()

    listing, said = run()
    assert listing == [] and "working directory" in said and "--path" in said
    listing, said = run("--path", ".")
    assert listing == ["data", "file"] and "all of it is shown" in said
    (home.parent / "link-to-home").symlink_to(home)
    try:
        assert run(variable=home.parent / "link-to-home")[0] == []
    finally:
        (home.parent / "link-to-home").unlink()
    assert run(variable=home / "not-there") == (["data", "file"], "")


@pytest.mark.root
def test_of_a_home_children_see_what_is_needed(pyspawner, tmp_path):
    """Whatever its mode; the rest of it only by a bind."""
    home = Path("/home/somebody")
    make = tmp_path / "make"
    make.write_text(
        "set -e\nmount -t tmpfs -o mode=755 x /home\nmkdir -p /home/somebody/project/code /home/somebody/.ssh\n"
        "cd /home/somebody; echo diary > diary; echo key > .ssh/id; echo here > project/file\n"
        f"cp {JOBS}/files.py project/code\n"
        'cd "$1"; shift; exec "$@"\n'
    )

    def read(path, directory=home, code=home / "project/code", **options):
        prefix = ["unshare", "-m", "sh", make, directory]
        done = pyspawner.map("files.read", [[str(path)]], path=code, prefix=prefix, **options)
        assert done.lines, done.stderr
        return done.lines[0]["result"]

    assert read(home / "diary") == "ENOENT"
    assert read(home / "project/code/files.py").startswith('"""')
    assert read(home / "project/file") == "ENOENT"
    # Started there, the working directory is one from which modules are imported.
    assert read(home / "project/file", directory=home / "project") == "here\n"
    assert read("file", directory=home / "project", config=profile(cwd="caller")) == "here\n"
    assert read(home / "diary", directory=home / "project") == "ENOENT"
    # The controls. A bind shows all but the credentials.
    assert read(home / "diary", config=profile(skip_layers=["root", "landlock"])) == "diary\n"
    shown = {"config": profile(binds=[{"source": home}])}
    assert (read(home / "diary", **shown), read(home / ".ssh/id", **shown)) == ("diary\n", "ENOENT")
    assert read(home / ".ssh/id", config=profile(binds=[{"source": home / ".ssh"}])) == "key\n"


@pytest.mark.root
def test_a_chroot_or_a_bind_does_not_bring_the_kernels_file_systems(pyspawner, tmp_path):
    place = PLACE
    make = tmp_path / "make"
    make.write_text(
        f"set -e\nmount -t tmpfs -o mode=755 x {place}\ncd {place}; mkdir proc sys deep deep/proc\n"
        'mount -t proc p proc; mount -t sysfs s sys; mount --rbind /proc deep/proc\nexec "$@"\n'
    )

    def listings(config, folders):
        prefix = ["unshare", "-m", "sh", make]
        jobs = [[folder] for folder in folders]
        done = pyspawner.map("files.listing", jobs, "--ordered", path=JOBS, prefix=prefix, config=config)
        assert len(done.lines) == len(jobs), done.stderr
        return [line["result"] for line in done.lines]

    empty = [[], [], []]
    folders = ["/proc", "/sys", "/deep/proc"]
    assert listings(profile(root={"chroot": place}), folders) == empty
    private = listings(profile(root={"chroot": place}, proc="private"), folders)
    assert "self" in private[0] and private[1:] == [[], []]
    binds = [{"source": place, "target": "/tmp/shown"}]
    assert listings(profile(binds=binds), [f"/tmp/shown{folder}" for folder in folders]) == empty
    # The controls: without the layer they are there, and what is bound itself is.
    without = listings(profile(skip_layers=["root", "landlock"]), [place + folder for folder in folders])
    assert all("self" in listing or "kernel" in listing for listing in without)
    binds = [{"source": f"{place}/sys", "target": "/tmp/shown"}]
    assert "kernel" in listings(profile(binds=binds), ["/tmp/shown"])[0]
    done = pyspawner.map("files.whoami", [[]], path=JOBS, config=profile(root={"chroot": "/proc"}))
    assert (done.status, done.stdout) == (125, "") and "kernel" in done.stderr


def test_what_lies_in_no_root_cannot_be_hidden(pyspawner, data):
    config = profile(root={"empty": True}, hide=[data])
    done = pyspawner.map("files.whoami", [[]], path=JOBS, config=config)
    assert done.status == 125 and "do not see" in done.stderr, done.stderr


SECRETS = ["/etc/shadow", "/run/secrets/token", "/root/.ssh/id", "/home/somebody/.aws/credentials", "/etc/ssh/key"]


@pytest.mark.root
@pytest.mark.parametrize("path", SECRETS)
def test_secrets_of_the_host_are_hidden_by_default(pyspawner, path, tmp_path):
    """Even where their modes are wrong. In a mount namespace that has them."""
    folder = Path(path).parent
    make = tmp_path / "make"
    make.write_text(
        "set -e\n"
        f"for place in /run /root/.ssh /home /etc/ssh; do mkdir -p $place; mount -t tmpfs -o mode=755 x $place; done\n"
        f"mkdir -p {folder}\n"
        + (
            f"echo secret > {path}; chmod 644 {path}\n"
            if path != "/etc/shadow"
            else "echo secret > /home/open; chmod 644 /home/open; mount --bind /home/open /etc/shadow\n"
        )
        + 'exec "$@"\n'
    )
    prefix = ["unshare", "-m", "sh", make]

    def read(**options):
        done = pyspawner.map("files.read", [[path]], path=JOBS, prefix=prefix, **options)
        assert done.lines, done.stderr
        return done.lines[0]["result"]

    assert read() in ("", "ENOENT", "EACCES")
    # The control: without the root layer, or with a bind that shows it, it is read.
    assert read(config=profile(skip_layers=["root", "landlock"])) == "secret\n" or path.startswith("/root")
    if path != "/etc/shadow":
        assert read(config=profile(binds=[{"source": folder}])) == "secret\n"


def test_a_chroot_may_have_proc_and_tmp_if_it_says_so(pyspawner, open_folder):
    for name in ("proc", "tmp"):
        (open_folder / name).mkdir()
    root = {"chroot": open_folder}
    assert job(pyspawner, "listing", "/proc", root=root) == []
    assert "self" in job(pyspawner, "listing", "/proc", root=root, proc="private")
    assert job(pyspawner, "write", "/tmp/x", root=root, tmp="1M") == "ok"
    assert list((open_folder / "tmp").iterdir()) == []


def test_a_chroot_without_the_folder_for_its_tmp_is_refused(pyspawner, open_folder):
    config = profile(root={"chroot": open_folder}, tmp="1M")
    done = pyspawner.map("files.whoami", [[]], path=JOBS, config=config)
    assert done.status == 125 and "tmpfs on /tmp" in done.stderr and "hint" in done.stderr
