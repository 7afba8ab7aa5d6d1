"""``pyspawner bench``: its figures are those of samples that were taken, and its picture shows them."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from driving import PYSPAWNER

SAMPLES = 8
PERCENTILES = ("min", "p50", "p90", "p99")


def bench(*flags, config=None, tmp_path=None):
    command = [PYSPAWNER, "bench", "--python", sys.executable, "--samples", SAMPLES, *flags]
    if config is not None:
        file = tmp_path / "pyspawner.toml"
        file.write_text(config)
        command += ["--config", file]
    command = [str(word) for word in command]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def figures(*flags, **options):
    done = bench("--json", *flags, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_times(latency, has_first_byte=True):
    for times in [latency["first_byte"]] * has_first_byte + [latency["reaped"]]:
        assert times["count"] == SAMPLES
        in_order = [times[name] for name in PERCENTILES]
        assert in_order == sorted(in_order) and in_order[0] > 0


def test_every_figure_is_there():
    found = figures("--preload", "json,decimal", "-j", "1,3")
    assert (found["samples"], found["preload"]) == (SAMPLES, ["json", "decimal"])
    latency = found["latency_ms"]
    assert list(latency) == ["ready_spare", "cold", "floor", "bare_clone"]
    for kind in ("ready_spare", "cold", "floor"):
        check_times(latency[kind])
        assert latency[kind]["first_byte"]["min"] <= latency[kind]["reaped"]["min"]
    check_times(latency["bare_clone"], has_first_byte=False)
    ratio = latency["cold"]["reaped"]["p50"] / latency["floor"]["reaped"]["p50"]
    assert found["ratios"]["cold_to_floor"]["reaped"] == pytest.approx(ratio)
    assert [(row["concurrency"], row["jobs"]) for row in found["throughput"]] == [(1, SAMPLES), (3, SAMPLES)]
    assert all(row["jobs_per_second"] > 1 for row in found["throughput"])
    memory = found["memory_bytes"]
    assert 100 << 10 < memory["private"] < 16 << 20
    assert memory["private"] < memory["pss"] < memory["private"] + memory["shared"]
    assert memory["page_tables"] >= 4096


def test_without_spares_there_is_no_figure_for_them(tmp_path):
    found = figures("-j", "1", config="[pool]\nspares = 0\n", tmp_path=tmp_path)
    assert found["latency_ms"]["ready_spare"] is None
    assert found["ratios"]["cold_to_ready_spare"] is None
    check_times(found["latency_ms"]["cold"])


def test_the_table_for_people():
    done = bench("-j", "2")
    assert done.returncode == 0, done.stderr
    for word in ("ready spare", "cold", "floor", "bare clone", "throughput, 2 at once", "private"):
        assert word in done.stdout


def test_the_plot_has_a_curve_for_each_kind(tmp_path):
    file = tmp_path / "plot.svg"
    figures("-j", "1", "--plot", file)
    root = ElementTree.parse(file).getroot()
    texts = {"".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Request to first byte", "Request to reaped", "ready spare", "cold", "floor", "bare clone"} <= texts
    lines = root.iter("{http://www.w3.org/2000/svg}polyline")
    curves = [line for line in lines if len(line.get("points").split()) >= 2 * SAMPLES]
    assert len(curves) == 3 + 4, "bare clones write no byte"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--samples", "0"], "--samples"),
        (["-j", "0"], "--jobs"),
        (["--child-main", "x.y"], "--child-main"),
        (["--plot", "/none/plot.svg"], "opening the plot /none/plot.svg"),
    ],
)
def test_what_cannot_be_is_said(flags, words):
    done = bench(*flags)
    assert done.returncode in (2, 125)
    assert words in done.stderr
    assert done.stdout == ""


def test_a_module_that_cannot_be_imported_is_named():
    done = bench("--preload", "no_such_module")
    assert done.returncode == 125
    assert "no_such_module" in done.stderr
