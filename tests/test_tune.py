"""Fair tuning: equal budgets, a stream that no evaluation shows, runs that say they are tuned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import benchmarks
import streams
import tta
from benchmarks.cli import app
from benchmarks.leaderboard import leaderboard
from benchmarks.results import find_results
from benchmarks.runner import open_stream
from benchmarks.source_data import find_source
from benchmarks.tune import Range, draw, plan, search_space
from benchmarks.tuned import read_tuned, shared_images, write_tuned
from streams.corruptions.names import EXTRA_CORRUPTIONS

SMALL = ("--num-examples", "20", "--batch-size", "10", "--corruptions", "fog")
STREAM = ("-s", "fashion-mnist-c")
TUNE = ("tune", *STREAM, *SMALL, "--trials", "2", "--tune-corruptions", "spatter")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def call(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: str | Path):
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def config_of(method: str) -> dict:
    return benchmarks.resolve(method, "fashion-mnist-c").config


# What is searched -------------------------------------------------------------------------------


def test_ranges():
    """Values by hand: the rate over and times 10, others 3, a share near 1 by its distance to 1."""
    assert search_space("tent", config_of("tent"), []) == {"lr": Range(1e-4, 1e-2)}
    space = search_space("cotta", config_of("cotta"), ["lr"])
    assert list(space) == ["teacher_decay", "confidence_threshold", "restore_probability"]
    decay = space["teacher_decay"]
    assert (decay.low, decay.high, decay.top) == pytest.approx((1e-3 / 3, 3e-3, 1))
    assert (decay.at(0.0), decay.at(0.5)) == pytest.approx((1 - 0.000333, 0.999), abs=1e-6)
    assert space["restore_probability"] == Range(0.01 / 3, 0.03)
    assert search_space("t3a", {**config_of("t3a"), "supports": 20}, []) == {
        "supports": Range(20 / 3, 60, whole=True)
    }
    assert Range(20 / 3, 60, whole=True).at(0.5) == 20
    assert search_space("deyo", config_of("deyo"), ["lr"]).keys() == {
        *("entropy_threshold", "entropy_margin", "plpd_threshold")
    }
    for method in ("source", "norm"):
        assert search_space(method, config_of(method), []) == {}


@pytest.mark.parametrize("method", tta.list_adapters())
def test_every_draw_is_a_valid_config(method: str):
    config = config_of(method)
    space = search_space(method, config, [])
    assert len(space) <= 4
    draws = draw(space, 33, 0, method)
    assert len(draws) == (32 if space else 0)
    for options in draws:
        tta.adapter_config(method).create({**config, **options})
        for name, value in options.items():
            assert value == pytest.approx(config[name], abs=9 * config[name] + 1e-12)
            assert isinstance(value, int) == space[name].whole


def test_draws_are_keyed_by_seed_and_method_and_do_not_depend_on_their_number():
    space = {"lr": Range(1e-4, 1e-2), "margin": Range(0.1, 0.9)}
    eight = draw(space, 8, 0, "deyo")
    assert eight == draw(space, 8, 0, "deyo")
    assert eight[:3] == draw(space, 4, 0, "deyo")
    assert eight != draw(space, 8, 1, "deyo")
    assert eight != draw(space, 8, 0, "eata")
    rates = np.log10([options["lr"] for options in draw(space, 65, 0, "deyo")])
    # Log-uniform: about as many in each quarter of the two decades.
    counts = np.histogram(rates, bins=np.linspace(-4, -2, 5))[0]
    assert counts.tolist() == pytest.approx([16] * 4, abs=1)


def test_every_method_gets_the_same_budget_and_its_own_config_first():
    tuning = plan(["source", "tent", "eata"], "fashion-mnist-c", trials=5, num_examples=100, seed=3)
    assert {name: len(specs) for name, specs in tuning.specs.items()} == {
        "source": 1,
        "tent": 5,
        "eata": 5,
    }
    for method, specs in tuning.specs.items():
        default = benchmarks.resolve(method, "fashion-mnist-c", seed=3).config
        assert specs[0].config == default
        assert all(spec.seed == 3 for spec in specs)
        assert len({json.dumps(spec.config, sort_keys=True) for spec in specs}) == len(specs)


# Where it is searched ---------------------------------------------------------------------------


def shown(stream: streams.Stream) -> set[int]:
    """Ids of all images that a stream shows, from its batches."""
    return set(torch.cat([batch.index for batch in stream]).tolist())


def test_the_tuning_stream_shows_no_image_and_no_corruption_of_the_evaluation():
    tuning = plan(["tent"], "fashion-mnist-c", trials=2, num_examples=30, batch_size=15)
    evaluated = open_stream(tuning.evaluation)
    ours, theirs = shown(tuning.stream), shown(evaluated)
    assert (len(ours), len(theirs), ours & theirs) == (30, 30, set())
    assert len(shared_images(tuning.stream, evaluated)) == 0
    names = [{d.corruption for d in stream.domains} for stream in (tuning.stream, evaluated)]
    assert names[0] == set(EXTRA_CORRUPTIONS)
    assert not names[0] & names[1]
    assert len(names[1]) == 15
    for spec in tuning.specs["tent"]:
        assert shown(open_stream(spec)) == ours


@pytest.mark.parametrize("setting", streams.list_settings())
def test_it_is_so_in_every_setting(setting: str):
    tuning = plan(["tent"], "fashion-mnist-c", trials=2, num_examples=200, setting=setting, seed=1)
    assert tuning.specs["tent"][0].setting == setting
    assert len(shared_images(tuning.stream, open_stream(tuning.evaluation))) == 0


def test_source_images_of_a_trial_are_not_those_of_the_evaluation():
    tuning = plan(["eata"], "fashion-mnist-c", trials=2, num_examples=3000)
    images = find_source(tuning.specs["eata"][0], tuning.stream, labelled=False)
    assert len(images.positions) == 2000
    assert not set(images.positions.tolist()) & set(range(3000))
    assert set(open_stream(tuning.evaluation).plan.positions.tolist()) == set(range(3000))
    assert not set(images.positions.tolist()) & set(tuning.stream.plan.positions.tolist())


def test_another_order_of_the_evaluation_and_half_of_what_is_left():
    tuning = plan(["tent"], "fashion-mnist-c", trials=1, num_examples=9000, order="rotta")
    assert tuning.evaluation.order == "rotta"
    (spec,) = tuning.specs["tent"]
    assert (spec.skip_examples, spec.num_examples, spec.order) == (9000, 500, "default")


def test_a_stream_without_hold_out_corruptions_keeps_its_domains():
    tuning = plan(
        *(["tent"], "fashion-mnist"), trials=1, num_examples=40, backbone="fashion-resnet"
    )
    assert [d.name for d in tuning.stream.domains] == ["clean"]
    assert set(np.unique(tuning.stream.plan.positions)) == set(range(40, 80))


def test_skipped_examples_of_a_stream():
    words = {"corruptions": ("fog",), "shuffle": False}
    late = streams.create("fashion-mnist-c", num_examples=3, skip_examples=5, **words)
    assert late.plan.positions.tolist() == [5, 6, 7]
    rest = streams.create("fashion-mnist-c", skip_examples=9990, **words)
    assert rest.plan.positions.tolist() == list(range(9990, 10000))
    for wrong in ({"skip_examples": -1}, {"skip_examples": 10000}, {"skip_examples": 1.5}):
        with pytest.raises(streams.StreamError, match="skip_examples="):
            streams.create("fashion-mnist-c", **words, **wrong)
    with pytest.raises(streams.StreamError, match="has 10 images left after 9990"):
        streams.create("fashion-mnist-c", num_examples=11, skip_examples=9990, **words)


def test_runs_that_are_not_tuned_keep_their_identity():
    spec = benchmarks.resolve("tent", "fashion-mnist-c", num_examples=40, seed=1)
    assert spec.identity("w", "s") == IDENTITY
    for change in ({"tuned_trials": 8}, {"tuned_on": "x"}, {"skip_examples": 40}):
        assert spec.model_copy(update=change).identity("w", "s") != IDENTITY


IDENTITY = "bce0cb80d065f4d5eb7d12eeebafae27ec53731d7b5251f2d564145aadafad94"


# From a tuning to a run -------------------------------------------------------------------------


def test_tune_then_run(tmp_path: Path):
    """Trials are ordinary runs, found again; the run takes the best up and says so."""
    said = json.loads(done(*TUNE, "-m", "source,tent", "--json").stdout)
    tent = said["methods"]["tent"]
    tried = said["tried"]["tent"]
    assert [trial["trial"] for trial in tried] == [0, 1]
    assert tried[0]["options"] == {"lr": 1e-3}
    errors = [trial["error_pct"] for trial in tried]
    assert tent["error_pct"] == min(errors)
    assert tent["options"] == tried[tent["best_trial"]]["options"]
    assert (tent["default_error_pct"], tent["trials"]) == (errors[0], 2)
    assert said["methods"]["source"]["trials"] == 1
    trials = find_results([Path("results/tune")])
    assert sorted(row["method"] for row in trials) == ["source", "tent", "tent"]
    assert {row["stream_hash"] for row in trials} == {said["stream_hash"]}
    assert sorted(r["error_pct"] for r in trials if r["method"] == "tent") == sorted(errors)

    # Again, with one more trial: what is finished is read.
    before = {path: path.stat().st_mtime_ns for path in Path("results/tune").rglob("result.json")}
    again = done(*TUNE, "-m", "source,tent", "--trials", "3")
    assert "nothing to search" in again.stdout
    after = {path: path.stat().st_mtime_ns for path in Path("results/tune").rglob("result.json")}
    assert before.items() < after.items()
    assert len(after) == 4
    tuned = read_tuned(Path("results/tuned.toml"))
    assert tuned.methods["tent"].trials == 3

    run = ("run", "-m", "source,tent", *STREAM, *SMALL, "--json")
    source, row = json.loads(done(*run, "--tuned", "results/tuned.toml").stdout)
    assert json.loads(row["config"])["lr"] == tuned.methods["tent"].options["lr"]
    assert row["tuned_trials"] == 3
    assert row["tuned_on"] == f"{tuned.protocol} ({tuned.stream_hash[:12]})"
    # Nothing of the source model was tuned: it is the run that it always was.
    plain_source, plain = json.loads(done(*run).stdout)
    assert plain_source["run_id"] == source["run_id"]
    assert source["tuned_on"] is source["tuned_trials"] is None
    assert plain["run_id"] != row["run_id"]
    assert plain["tuned_on"] is None
    words = (*run, "--tuned", "results/tuned.toml", "--set", "tent.lr=0.5")
    assert json.loads(json.loads(done(*words).stdout)[1]["config"])["lr"] == 0.5
    ranked = leaderboard([plain, row])
    assert len(ranked) == 2
    assert "tent (tuned)" in done("leaderboard", "results").stdout


def test_trials_are_guarded_and_limited_as_the_run_will_be():
    words = ("-m", "tent", "--guard", "rollback", "--guard-set", "every=3")
    done(*TUNE, *words, "--budget", "update_every=2")
    specs = [json.loads(path.read_text()) for path in Path("results/tune").rglob("spec.json")]
    assert len(specs) == 2
    for spec in specs:
        assert (spec["guard"]["action"], spec["guard"]["every"]) == ("rollback", 3)
        assert spec["budget"]["update_every"] == 2
    assert "--guard-set has no effect" in refused(*TUNE, "-m", "tent", "--guard-set", "every=3")


def tuned_file(changes: dict | None = None) -> Path:
    """A file as ``tune`` writes it for 20 images under fog, without running a trial."""
    tuning = plan(
        *(["tent"], "fashion-mnist-c"),
        trials=2,
        tune_corruptions=["spatter"],
        **{"num_examples": 20, "batch_size": 10, "corruptions": ("fog",), **(changes or {})},
    )
    path = Path("tuned.toml")
    write_tuned(path, tuning.best({"tent": [2.0, 1.0]}))
    return path


def test_the_file_reads_back_and_ties_keep_the_default():
    path = tuned_file({"setting": "practical", "setting_options": {"gamma": "0.5"}})
    tuned = read_tuned(path)
    write_tuned(Path("again.toml"), tuned)
    assert Path("again.toml").read_bytes() == path.read_bytes()
    assert tuned.tuning_stream["setting_options"] == {"gamma": 0.5}
    spec = benchmarks.resolve(
        "tent", "fashion-mnist-c", setting="practical", num_examples=20, seed=5
    )
    assert tuned.mark([spec])[0].tuned_trials == 2
    tuning = plan(["tent"], "fashion-mnist-c", trials=3, num_examples=20)
    assert tuning.best({"tent": [2.0 + 1e-13, 2.0, 3.0]}).methods["tent"].best_trial == 0


def test_shared_images_under_other_corruptions_are_said():
    path = tuned_file({"shared": True})
    spec = benchmarks.resolve("tent", "fashion-mnist-c", num_examples=20, corruptions=("fog",))
    (marked,) = read_tuned(path).mark([spec])
    assert marked.tuned_on.endswith(", same images)")


RUN = ("run", *STREAM, *SMALL, "-m", "tent", "--tuned", "tuned.toml")
MISFITS = {
    "overlap": (("--num-examples", "25", "--corruptions", "fog,spatter"), "saw 5 images of this"),
    "method": (("-m", "sar"), "'sar' was not tuned"),
    "backbone": (("--backbone", "timm:resnet18"), "are for backbone fashion-resnet"),
    "stream": (("-s", "fashion-mnist", "--backbone", "x", "--corruptions", "clean"), "for stream"),
    "learning": (
        ("-s", "split-fashion-mnist", "-m", "naive", "--backbone", "small-cnn"),
        "--corruptions",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_run_that_the_options_are_not_for(case: str):
    tuned_file()
    words, message = MISFITS[case]
    assert message in refused(*RUN, *words)
    assert not Path("results").exists()


def test_changed_data_or_a_damaged_file_is_refused():
    path = tuned_file()
    text = path.read_text()
    path.write_text(text.replace("skip_examples = 20", "skip_examples = 21"))
    assert "has changed since the tuning" in refused(*RUN)
    for broken, message in {
        text.replace("format = 1", "format = 2"): "was not written by this",
        text[:100]: "cannot read tuned.toml",
        text.replace('backbone = "fashion-resnet"\n', ""): "backbone",
    }.items():
        path.write_text(broken)
        assert message in refused(*RUN)
    path.unlink()
    assert "cannot read tuned.toml" in refused(*RUN)


WRONG = {
    "all images": ((), "shows all 10000 images of fashion-mnist-c"),
    "shared": (("--shared-images", "--tune-corruptions", "fog"), "under fog, which is evaluated"),
    "too many": (("--num-examples", "9990", "--tune-examples", "11"), "leaves 10 of 10000"),
    "method": (("--num-examples", "9", "-m", "tentt"), "did you mean 'tent'"),
    "corruption": (("--num-examples", "9", "--tune-corruptions", "fogg"), "did you mean 'fog'"),
    "option": (("--num-examples", "9", "--set", "lrr=1"), "unknown option 'lrr'"),
    "learning": (("-s", "split-fashion-mnist"), "is a learning stream"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case: str):
    words, message = WRONG[case]
    assert message in refused("tune", "-m", "tent", *STREAM, *words)
    assert not Path("results").exists()


def test_help_teaches():
    text = done("tune", "--help").stdout
    assert "Try:" in text
    assert "--shared-images" in text
