"""A chroot of a child's own, in mount namespaces that have what is to go wrong.

Each scene is a shell script, run in a mount namespace of its own as root of that; a program in it
starts a host and asks it for children in ``root``.
"""

import errno
import os
import subprocess
import sys
import textwrap

import pytest
from clients import JOBS
from driving import ROOT, skipping

PROGRAM = """
import os, sys
sys.path.insert(0, {python!r})
import pyspawner
folder, options, path = sys.argv[1], {options!r}, sys.argv[2]
with pyspawner.Client(child_main="client_jobs.main", **options) as client:
    config = pyspawner.SandboxConfig(chroot_dir=folder or None)
    for _ in range(2):
        try:
            print(client.spawn_child(["listing", path], sandbox_config=config).communicate()[0].decode().strip())
        except pyspawner.SandboxSetupError as error:
            print("refused:", error.step, error.errno, error.hint)
        except pyspawner.ProtocolError as error:
            print("refused:", error)
print(len(os.listdir("/")) > 3)
for line in open("/proc/self/mountinfo"):
    if {root!r} in line:
        print("mount", line.split()[4])
"""


@pytest.fixture
def root(open_folder):
    open_folder.chmod(0o755)
    (open_folder / "inner").mkdir()
    return open_folder


@pytest.fixture
def look(root, tmp_path):
    """What a child lists at ``path``, twice, and the mounts below the chroot that are there afterwards."""

    def look(scene, path="/inner", folder=root, **options):
        if "config" in options:
            (tmp_path / "pyspawner.toml").write_text(options["config"])
            options["config"] = str(tmp_path / "pyspawner.toml")
        program = tmp_path / "program.py"
        text = PROGRAM.format(python=str(ROOT / "python"), options=options, root=str(root))
        program.write_text(text)
        script = textwrap.dedent(scene) + '\nexec "$@"\n'
        command = ["unshare", "-m", "sh", "-ec", script, "sh", sys.executable, program, folder, path]
        environment = {**os.environ, "ROOT": str(root)}
        done = subprocess.run(
            list(map(str, command)), cwd=JOBS, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        lines = done.stdout.splitlines()
        assert len(lines) >= 3, done
        assert lines[2] == "True", "the host's root is another one now"
        assert lines[0] == lines[1], done
        return lines[0], [line.split()[1] for line in lines[3:]]

    return look


def test_where_the_hosts_mounts_are_shared(look, root):
    """As systemd has them."""
    assert look("mount --make-rshared /", "/") == ("['inner']", [])


def test_what_a_child_covers_stays_its_own(look, root):
    scene = "mount --make-rshared /; mount -t proc p $ROOT/inner"
    assert look(scene) == ("[]", [f"{root}/inner"])
    scene = "mount --bind $ROOT $ROOT; mount --make-private $ROOT; mount -t proc p $ROOT/inner; "
    scene += "mount --make-shared $ROOT/inner"
    assert look(scene) == ("[]", [str(root), f"{root}/inner"])


def test_without_the_root_layer_it_is_refused(look, root):
    """There is no mount namespace of the child's own then."""
    config = skipping("root", "user_namespace", "landlock")
    said, _ = look("", "/", config=config)
    assert said.startswith("refused: ") and "layer" in said and "root" in said


@pytest.mark.parametrize(
    "scene",
    [
        "mount --rbind /dev $ROOT/inner",
        "mount -t devtmpfs d $ROOT/inner; mkdir -p $ROOT/inner/pts; mount -t devpts d $ROOT/inner/pts",
        "mount --rbind /sys $ROOT/inner",
        "mount --rbind /proc $ROOT/inner",
        "mount -t proc p $ROOT/inner; mount -t proc p $ROOT/inner",
    ],
)
def test_nested_kernel_file_systems_are_covered(look, scene):
    said, _ = look(scene)
    # Where /dev is no file system of the kernel's, what lies in it still is.
    assert said == "[]" or ("/dev" in scene and "pts" in said and not said.startswith("refused")), said


def test_a_kernel_file_system_below_an_ordinary_one_is_covered(look):
    scene = """
    mount -t tmpfs t $ROOT/inner
    mkdir $ROOT/inner/deep
    mount -t proc p $ROOT/inner/deep
    """
    assert look(scene, "/inner")[0] == "['deep']"
    assert look(scene, "/inner/deep")[0] == "[]"
    # What is out of sight already is no obstacle.
    scene += "mount -t tmpfs t $ROOT/inner; mkdir $ROOT/inner/other"
    assert look(scene, "/inner")[0] == "['other']"


def test_files_of_a_kernel_file_system_are_covered(look, root):
    (root / "null").write_text("")
    (root / "version").write_text("")
    scene = "mount --bind /proc/version $ROOT/version; mount --bind /proc/sys/kernel $ROOT/inner"
    assert look(scene, "/inner")[0] == "[]"


def test_names_that_are_no_text(look, root):
    place = os.fsencode(root) + b"/odd \xff\\name"
    os.mkdir(place)
    os.mkdir(root / "odd")
    scene = 'mount -t proc p "$ROOT"/odd\\ *'
    said, _ = look(scene, "/")
    assert "inner" in said
    assert look(scene + '; mv "$ROOT"/odd "$ROOT"/odder; mkdir "$ROOT"/inner/x', "/inner")[0] == "['x']"


def test_a_folder_of_a_kernel_file_system_is_refused(look):
    for folder in ["/proc/sys", "/sys/kernel"]:
        said, _ = look("", "/", folder)
        assert said.startswith("refused: ") and "the kernel's own" in said


def test_in_a_profile_whose_own_root_is_bare(look, root):
    """It need not have a place for anything to be mounted on."""
    config = f'[profile.default]\nroot = {{ chroot = "{root}/inner" }}\n'
    assert look("", "/", config=config)[0] == "['inner']"


def test_kernel_file_systems_one_on_the_other_in_a_profiles_root(look, root):
    config = f'[profile.default]\nroot = {{ chroot = "{root}" }}\n'
    scene = "mount -t proc p $ROOT/inner; mount -t sysfs s $ROOT/inner; mount -t proc p $ROOT/inner"
    assert look(scene, "/inner", "", config=config)[0] == "[]"
    scene += "; mount -t tmpfs t $ROOT/inner; mkdir $ROOT/inner/wanted"
    assert look(scene, "/inner", "", config=config)[0] == "['wanted']"


# ---- links -----------------------------------------------------------------------------------


def test_a_link_that_others_may_have_made_is_not_followed(look, root):
    """Where jobs can write, they would choose which folder of the host's a later one sees."""
    inner = root / "inner"
    inner.chmod(0o777)
    (inner / "link").symlink_to("/etc")
    for folder in [inner / "link", inner / "link" / "ssl", inner / "link" / ".." / "usr"]:
        said, _ = look("", "/", folder)
        assert (
            said.startswith("refused: ")
            and "link" in said
            and "links are followed only in folders that belong to root" in said
        ), said
    # In a folder of a job's own, whatever its mode.
    inner.chmod(0o755)
    os.chown(inner, 123456, 123456)
    assert look("", "/", inner / "link")[0].startswith("refused: ")


def test_a_link_of_the_operators_is_followed(look, root):
    (root / "way").symlink_to("elsewhere")
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "current").symlink_to(root / "inner")
    (root / "inner" / "seen").mkdir()
    for folder in [root / "way" / "current", root / "way" / ".." / "inner", f"{root}//./way/current/"]:
        assert look("", "/", folder)[0] == "['seen']", folder
    (root / "round").symlink_to("round")
    (root / "file").write_text("")
    for folder, name in [("round", "ELOOP"), ("file", "ENOTDIR"), ("none", "ENOENT"), ("file/x", "ENOTDIR")]:
        said, _ = look("", "/", root / folder)
        assert said.startswith("refused: open ") and str(getattr(errno, name)) in said, said
