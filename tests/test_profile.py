import json
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from benchmarks.profile import measure
from benchmarks.profile_bound import Call, bound
from benchmarks.profile_types import Request


def call(images, graph):
    return Call(images, graph)


# Seconds of a forward, of one and a backward, of a forward with a graph.
PRICES = {40: (0.4, 1.0, 0.5), 10: (0.1, 0.4, 0.2)}


@pytest.mark.parametrize(
    ("calls", "report", "seconds"),
    [
        ([call(40, True)], {"forwards": 40, "backwards": 40}, 1.0),
        ([call(40, True)], {"forwards": 40, "backwards": 0}, 0.5),  # nothing was selected
        ([call(40, False), call(40, True)], {"forwards": 80, "backwards": 40}, 1.4),
        ([call(40, True), call(20, True)], {"forwards": 60, "backwards": 60}, 1.6),
        # Ten images went forward without the whole model's forward: a quarter of a batch.
        ([call(40, False)], {"forwards": 50, "backwards": 0}, 0.5),
    ],
)
def test_bound_prices_what_a_step_did(calls, report, seconds):
    assert bound(calls, report, PRICES, 40) == pytest.approx(seconds)


def test_a_larger_size_has_a_price_of_its_own():
    three = {**PRICES, 160: (4.0, 8.0, 5.0)}  # out of the caches
    report = {"forwards": 160, "backwards": 160}
    assert bound([call(160, True)], report, three, 40) == pytest.approx(8.0)
    assert bound([call(100, False)], report, three, 40) == pytest.approx(2.2 + 60 * 0.4 / 40)
    assert bound([call(20, False)] * 8, report, three, 40) == pytest.approx(8 * 0.2)


@pytest.mark.parametrize(
    ("method", "forwards", "backwards"), [("source", 1, 0), ("tent", 1, 1), ("lame", 1, 0)]
)
def test_a_row_counts_what_the_method_did(method, forwards, backwards):
    row = measure(Request(method=method, backbone="fashion-resnet", batch_size=8, rounds=2))
    assert (row["forwards"], row["backwards"]) == (forwards, backwards)
    assert row["ratio"] > 0
    assert row["step_ms"] > 0
    assert row["peak_mib"] >= row["bare_mib"] > 0
    assert (row["backward_ms"] > 0) == (backwards > 0)


def test_teachers_and_source_data():
    cotta = Request(
        method="cotta",
        backbone="fashion-resnet",
        batch_size=4,
        rounds=1,
        options={"num_views": 2, "confidence_threshold": 1.0},
    )
    # The student, the source model, two views of the teacher.
    assert measure(cotta)["forwards"] == 4
    assert measure(Request(method="adanpc", backbone="fashion-resnet", batch_size=4, rounds=1))


def test_images_of_another_stream():
    """A method that selects by entropy selects more of lightly corrupted images."""
    of = {
        severity: measure(
            Request(
                method="eata",
                backbone="fashion-resnet",
                severity=severity,
                batch_size=64,
                rounds=2,
                options={"fisher_weight": 0.0, "redundancy_margin": 1.1},
            )
        )
        for severity in (1, 5)
    }
    assert of[1]["backwards"] > of[5]["backwards"] > 0


def test_command(tmp_path, capfd):
    from benchmarks.cli import app

    file = tmp_path / "cost.csv"
    words = ["profile", "-m", "source", "--batch-size", "4", "--rounds", "1", "--json", "--plain"]
    ran = CliRunner().invoke(app, [*words, "--out", str(file)])
    assert ran.exit_code == 0, ran.output
    assert "Warning" not in capfd.readouterr().err
    rows = json.loads(ran.stdout)
    assert [row["method"] for row in rows] == ["source"]
    assert rows[0]["plain_ms"] > 0
    assert rows[0]["speedup"] > 0
    assert file.read_text().splitlines()[0].split(",") == list(rows[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "tnet"], "did you mean 'tent'"),
        (["-m", "tent", "--checkpoint", "nowhere.pt"], "is not a file"),
        (["-m", "tent", "--set", "lrr=1"], "lrr"),
        (["-m", "tent", "-s", "fashion-mnst-c"], "did you mean 'fashion-mnist-c'"),
        (["-m", "tent", "-s", "cifar10-c", "--data-dir", "nowhere"], "no CIFAR-10-C in nowhere"),
    ],
)
def test_wrong_words(words, said, capfd):
    from benchmarks.cli import app

    ran = CliRunner().invoke(app, ["profile", *words])
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert capfd.readouterr().err == ""  # of the process that measures


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_ctrl_c_ends_the_plain_process_without_a_word():
    code = "import os, signal; from benchmarks.quiet import quiet_worker; quiet_worker()\n"
    code += "os.kill(os.getpid(), signal.SIGINT)\nprint('went on')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGINT, "", "")
