"""CCC: fractional severities, the way through a matrix, the stream, and its matrices."""

from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import benchmarks
import streams
from benchmarks.ccc_matrix import measure
from benchmarks.cli import app
from benchmarks.results import TIMING_FIELDS
from streams import ccc, random_crop
from streams.ccc_matrix import UNKNOWN, Matrix
from streams.ccc_path import LEVELS, POINTS, find_path, walk
from streams.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt, corrupt_between
from streams.corruptions.fractional import find_between
from streams.corruptions.parameters import PARAMETERS
from streams.errors import StreamError
from streams.feed import batches
from streams.settings import Request
from streams.sources import fashion_mnist_ccc
from streams.types import CLEAN, Domain

PAIR = ("gaussian_noise", "contrast")
OPTIONS = {"noises": ",".join(PAIR), "level": "easy", "speed": 10, "total_images": 300}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with a made-up matrix: accuracy falls with the sum of the severities."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTA_BENCH_CACHE", str(folder))
        write_matrix("fashion-resnet")
    return folder


def write_matrix(backbone: str) -> Matrix:
    facts = fashion_mnist_ccc.open_pipeline().facts
    matrix = Matrix(about={"backbone": backbone, "weights": backbone, "images": 100, **facts})
    counts = np.clip(90 - np.add.outer(3 * np.arange(POINTS), 2 * np.arange(POINTS)), 0, 100)
    for first, second in itertools.permutations(PAIR):
        matrix.save(first, second, counts)
    return matrix


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(cache))


def make(batch_size: int = 20, **options) -> streams.Stream:
    return streams.create(
        "fashion-mnist-ccc", batch_size=batch_size, source_options={**OPTIONS, **options}
    )


def some_images(count: int = 6, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (count, 3, 8, 8), generator=generator).float()
    return torch.nn.functional.interpolate(small, size=side, mode="bilinear").to(torch.uint8)


# Fractional severities --------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRUPTIONS + EXTRA_CORRUPTIONS)
def test_integers_are_the_table_and_zero_is_the_image(name: str) -> None:
    images = some_images()
    assert torch.equal(corrupt_between(images, name, 0, ids=range(6)), images)
    for severity in (1, 4.0):
        whole = corrupt(images, name, int(severity), ids=range(6))
        assert torch.equal(corrupt_between(images, name, severity, ids=range(6)), whole)
    for profile in ("cifar", "imagenet", "tiny-imagenet"):
        rows = PARAMETERS[profile][name]
        for severity in (1, 3, 5):
            assert find_between(profile, name, severity)[1:] == (rows[severity - 1], 1.0)


@pytest.mark.parametrize("name", CORRUPTIONS + EXTRA_CORRUPTIONS)
@pytest.mark.parametrize("side", [32, 48])
def test_every_grid_severity_runs_and_a_small_one_changes_little(name: str, side: int) -> None:
    images, profile = some_images(3, side), "cifar" if side == 32 else "imagenet"

    def change(severity: float) -> float:
        made = corrupt_between(images, name, severity, ids=[1, 2, 3], profile=profile)
        assert made.shape == images.shape
        return float((made.float() - images.float()).abs().mean())

    changes = [change(at / 4) for at in range(POINTS)]
    assert changes[0] == 0
    assert changes[1] < 0.9 * changes[4] + 0.5  # a quarter is below the whole of severity 1
    assert np.isfinite(changes).all()


def test_parameters_between_are_interpolated_by_hand() -> None:
    def level(name: str, severity: float, profile: str = "imagenet"):
        return find_between(profile, name, severity)[1:]

    assert level("gaussian_noise", 0.5)[0] == pytest.approx((0.04,))
    assert level("gaussian_noise", 2.25)[0] == pytest.approx((0.12 + 0.25 * 0.06,))
    assert level("contrast", 0.25)[0] == pytest.approx((1 - 0.25 * 0.6,))
    assert level("shot_noise", 0.25)[0] == pytest.approx((240,))
    assert level("shot_noise", 1.5)[0] == pytest.approx((42.5,))
    assert level("frost", 0.5)[0] == pytest.approx((1, 0.2))
    assert level("fog", 0.5)[0] == pytest.approx((0.75, 2))
    assert level("zoom_blur", 0.5)[0] == pytest.approx((1.055, 0.01))
    assert level("motion_blur", 0.5)[0] == pytest.approx((10, 1.5))
    assert level("snow", 0.5)[0][3] == pytest.approx((0.5 + 0.1 + 4 * 0.3) / 2)
    assert level("jpeg_compression", 0.5)[0] == (63.0,)  # 62.5, rounded
    assert level("glass_blur", 1.5)[0] == pytest.approx((0.8, 2, 2))
    assert level("glass_blur", 0.5) == ((0.7, 1, 2), 0.5)
    assert level("spatter", 3.25)[0] == PARAMETERS["imagenet"]["spatter"][2]
    assert level("spatter", 3.5)[0] == PARAMETERS["imagenet"]["spatter"][3]


def test_a_mixed_image_lies_between() -> None:
    images = some_images()
    whole = corrupt(images, "glass_blur", 1, ids=range(6)).int()
    half = corrupt_between(images, "glass_blur", 0.5, ids=range(6)).int()
    # The draws are those of the severity asked for, so the bounds are those of the mixture alone.
    assert not torch.equal(half, images.int())
    assert float((half - images.int()).abs().float().mean()) < float(
        (whole - images.int()).abs().float().mean()
    )
    flat = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(corrupt_between(flat, "glass_blur", 0.75, ids=[0]), flat)


def test_pixels_between_do_not_depend_on_the_batch() -> None:
    images = some_images()
    for name in ("snow", "elastic_transform", "shot_noise"):
        together = corrupt_between(images, name, 2.75, ids=range(6), seed=3)
        alone = corrupt_between(images[4:5], name, 2.75, ids=[4], seed=3)
        assert torch.equal(together[4:5], alone)
        assert not torch.equal(corrupt_between(images, name, 2.75, ids=range(6)), together)


@pytest.mark.parametrize("severity", [-0.25, 5.25, float("nan"), True, float("inf")])
def test_a_wrong_severity_is_refused(severity: float) -> None:
    with pytest.raises(StreamError, match="severity must be a number above 0 and at most 5"):
        corrupt_between(some_images(), "fog", severity, ids=range(6))


# Paths ------------------------------------------------------------------------------------------


def all_paths(points: int):
    """Every monotone path from (i, 0) to (0, j)."""
    for i, j in itertools.product(range(1, points), repeat=2):
        for downs in itertools.combinations(range(i + j), i):
            at, path = (i, 0), [(i, 0)]
            for step in range(i + j):
                at = (at[0] - 1, at[1]) if step in downs else (at[0], at[1] + 1)
                path.append(at)
            yield path


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("baseline", [0, 20, 40, 77])
def test_no_path_has_a_mean_nearer_to_the_baseline(seed: int, baseline: int) -> None:
    accuracy = np.random.default_rng(seed).integers(0, 101, (5, 5)).astype(float)
    path = find_path(accuracy, baseline)
    assert path[0, 1] == path[-1, 0] == 0
    assert min(path[0, 0], path[-1, 1]) >= 1
    steps = np.diff(path, axis=0)
    assert {tuple(step) for step in steps.tolist()} <= {(-1, 0), (0, 1)}
    values = [accuracy[tuple(zip(*way, strict=True))] for way in all_paths(5)]
    away = [round(abs(v.mean() - baseline), 9) for v in values]
    ours = accuracy[path[:, 0], path[:, 1]]
    assert round(abs(ours.mean() - baseline), 9) == min(away)
    # Of those as near, none stays nearer to the baseline from point to point.
    spread = min(
        np.abs(v - baseline).mean() for v, a in zip(values, away, strict=True) if a == min(away)
    )
    assert np.abs(ours - baseline).mean() == pytest.approx(spread, abs=1e-3)


def test_a_walk_goes_on_with_the_second_corruption() -> None:
    paths = {}

    def path_of(first: str, second: str) -> np.ndarray:
        assert (first, second) not in paths
        paths[first, second] = np.array([[2, 0], [1, 0], [1, 1], [0, 1]], dtype=np.int8)
        return paths[first, second]

    noises = LEVELS["hard"][1]
    way = walk(noises, 4 * 40 + 2, 43, path_of)
    assert len(way) == 162
    assert way.starts == tuple(range(0, 162, 4))
    firsts, seconds = way.pairs[::4].T
    assert (seconds[:-1] == firsts[1:]).all()
    assert (firsts != seconds).all()
    assert way.at(0) == [(noises[firsts[0]], 0.5), (noises[seconds[0]], 0.0)]
    longer = walk(noises, 400, 43, lambda a, b: paths[a, b] if (a, b) in paths else path_of(a, b))
    assert np.array_equal(longer.pairs[:162], way.pairs)
    paths.clear()
    assert not np.array_equal(walk(noises, 162, 44, path_of).pairs, way.pairs)


def test_the_levels_are_those_of_the_paper() -> None:
    assert {name: (base, len(noises)) for name, (base, noises) in LEVELS.items()} == {
        "easy": (40, 14),
        "medium": (20, 13),
        "hard": (0, 4),
    }
    assert set(LEVELS["easy"][1]) - set(LEVELS["medium"][1]) == {"jpeg_compression"}


# Crops ------------------------------------------------------------------------------------------


def test_crops_have_the_laws_of_random_resized_crop() -> None:
    height, width = 100, 140
    generator = np.random.default_rng(0)
    parts = np.array([random_crop._part(height, width, 0.08, generator) for _ in range(4000)])
    top, left, rows, columns = parts.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + rows <= height).all()
    assert (left + columns <= width).all()
    share = rows * columns / (height * width)
    assert share.min() > 0.075
    ratio = columns / rows
    assert 0.72 < ratio.min() < ratio.max() < 1.4
    small = share < 0.3  # all of these fit, so the area is uniform
    assert abs(share[small].mean() - 0.19) < 0.01


def test_a_crop_flips_half_the_time_and_depends_on_its_generator_alone() -> None:
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[:, 16:] = 255
    made = [random_crop.flip_and_crop(image, 32, 1.0, np.random.default_rng(n)) for n in range(200)]
    flipped = sum(m[:, :4].mean() > 128 for m in made)
    assert 70 < flipped < 130
    again = random_crop.flip_and_crop(image, 32, 1.0, np.random.default_rng(7))
    assert np.array_equal(again, made[7])
    assert random_crop.flip_and_crop(image, 24, 0.3, np.random.default_rng(0)).shape == (24, 24, 3)


# The stream -------------------------------------------------------------------------------------


def test_pixels_do_not_depend_on_batch_size_start_workers_or_length() -> None:
    whole = torch.cat([batch.x for batch in make(20)])
    assert whole.shape == (300, 3, 32, 32)
    for other in (make(7), make(300), make(20, total_images=150)):
        found = torch.cat([batch.x for batch in other])
        assert torch.equal(found, whole[: len(found)])
    rest = list(batches(make(20).start_at(6), 2))
    assert [batch.step for batch in rest] == list(range(6, 15))
    assert torch.equal(torch.cat([batch.x for batch in rest]), whole[120:])
    assert not torch.equal(torch.cat([b.x for b in make(20, seed=44)]), whole)
    again = pickle.loads(pickle.dumps(make(20)))
    assert torch.equal(again.batch(3).x, whole[60:80])


def test_a_sample_by_hand() -> None:
    stream = make(20)
    source = stream.source
    batch = stream.batch(4)  # samples 80 to 99, grid steps 8 and 9
    for at in (0, 13):
        sample = 80 + at
        position = int(batch.index[at])
        pair = source.trajectory.at(sample // 10)
        positions, samples = np.array([position]), np.array([sample])
        images = source.pipeline.cropped(positions, samples, 43)
        for name, severity in pair:
            key = [(sample << 40) + position]
            images = corrupt_between(images, name, severity, ids=key, seed=43)
        assert torch.equal(batch.x[at], images[0] / 255)
        assert int(batch.y[at]) == source.labels[position]
    assert (batch.domain, batch.severity) == ("easy", 0)
    assert batch.index.dtype == batch.domain_ids.dtype == torch.int64


def test_each_grid_step_draws_different_images_and_visits_are_paths() -> None:
    stream = make(20)
    drawn = stream.plan.positions.reshape(30, 10)
    assert all(len(set(row)) == 10 for row in drawn.tolist())
    assert len(np.unique(drawn)) > 250
    starts = stream.source.trajectory.starts
    assert stream.plan.visit_starts == tuple(10 * start for start in starts)
    small = streams.create("fashion-mnist-ccc", num_examples=4, source_options=OPTIONS)
    assert set(small.plan.positions.tolist()) == {0, 1, 2, 3}
    first = np.bincount(small.plan.positions[:10])
    assert first.min() == 2  # ten draws from four: two whole passes, and two of them again
    assert first.max() == 3


def test_the_path_is_near_the_baseline() -> None:
    stream = make(20, total_images=3000)
    counts = np.clip(90 - np.add.outer(3 * np.arange(POINTS), 2 * np.arange(POINTS)), 0, 100)
    grid = stream.source.trajectory.grid.astype(int)
    bounds = [*stream.source.trajectory.starts, len(grid)]
    for a, b in itertools.pairwise(bounds[:-1]):
        assert counts[grid[a:b, 0], grid[a:b, 1]].mean() == pytest.approx(40, abs=0.5)


def test_a_plan_of_the_papers_length_is_cheap() -> None:
    """Planned in seconds, with five bytes a sample."""
    source = make(20).source
    long = replace(
        source,
        total=2_000_000,
        speed=1000,
        trajectory=walk(PAIR, 2000, 43, lambda *_: find_path(np.full((21, 21), 40.0), 40)),
    )
    plan = long.plan(
        Request(
            domains=(long._domain,),
            positions=np.arange(50_000),
            labels=np.zeros(50_000, dtype=np.int64),
            batch_size=64,
            seed=0,
            shuffle=True,
        )
    )
    assert len(plan) == 31_250
    assert plan.positions.nbytes + plan.domain_ids.nbytes == 5 * 2_000_000


def test_what_the_stream_says_of_itself() -> None:
    stream = make(20)
    said = str(stream.provenance)
    assert stream.provenance.kind == "generated"
    assert "easy: 40 % of 2 corruptions, corruptions=gaussian_noise+contrast" in said
    assert "speed=10, seed=43, length=300 (subsampled from 7500000)" in said
    assert "(fashion-resnet, 100 images)" in said
    hashes = {
        make(20, **{key: value}).hash
        for key, value in [
            ("speed", 20),
            ("seed", 44),
            ("total_images", 200),
            ("level", "medium"),
        ]
    }
    assert len(hashes | {stream.hash}) == 5
    assert stream.hash == make(20).hash
    assert stream.describe()["visits"] == len(stream.source.trajectory.starts)
    stream.source.check(CLEAN)
    clean = sum(len(y) for _, y in stream.clean_batches())
    assert clean == len(np.unique(stream.plan.positions))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": "harder"}, "level='harder' is none of easy, medium, hard"),
        ({"speed": 0}, "speed=0 must be an integer of at least 1"),
        ({"total_images": "many"}, "total_images='many' must be an integer"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"noises": "fog,fgo"}, "unknown corruption 'fgo'"),
        ({"noises": "contrast"}, "two or more"),
        ({"noises": ""}, r"lacks 180 of 182 pairs, such as .*fashion-resnet --level easy'"),
        ({"matrix": "other-net"}, "no accuracy matrix 'other-net'"),
    ],
)
def test_a_wrong_option_is_answered_in_one_line(options: dict, words: str) -> None:
    with pytest.raises(StreamError, match=words) as caught:
        make(20, **options)
    assert "\n" not in str(caught.value)


def test_settings_and_domains_of_others_are_refused() -> None:
    with pytest.raises(StreamError, match="an order of its own: leave the setting out"):
        streams.create("fashion-mnist-ccc", setting="mixed", source_options=OPTIONS)
    with pytest.raises(StreamError, match="no domain 'fog'"):
        streams.create("fashion-mnist-ccc", corruptions=("fog",), source_options=OPTIONS)
    with pytest.raises(StreamError, match="no open set"):
        streams.create("fashion-mnist-ccc", open_set="noise", source_options=OPTIONS)
    source = make(20).source
    with pytest.raises(StreamError, match="place in the stream"):
        source.images(np.arange(2), source._domain)
    with pytest.raises(StreamError, match="is easy here, not 'fog'"):
        source.check(Domain(name="fog", corruption="fog", severity=5))


def test_without_images_or_matrix_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StreamError, match="no ImageNet validation images in"):
        streams.create("ccc", data_dir=tmp_path)
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path))
    with pytest.raises(
        StreamError,
        match="run 'tta-bench data ccc-matrix fashion-mnist-ccc --backbone NAME --noises gau",
    ):
        make(20)
    write_matrix("one")
    write_matrix("two")
    with pytest.raises(StreamError, match=r"several accuracy matrices: .*--source-set matrix="):
        make(20)
    two = next(m for m in ("one", "two") if make(20, matrix=m).source.matrix)
    key = make(20, matrix=two).source.matrix[:8]
    assert make(20, matrix=key).hash == make(20, matrix=two).hash


def test_imagenet_is_cropped_from_the_whole_image_and_encoded(tmp_path: Path) -> None:
    from PIL import Image

    from streams.robustbench_bridge import imagenet_class_to_id
    from streams.sources import ccc as imagenet_ccc

    rng = np.random.default_rng(0)
    wnid = next(iter(imagenet_class_to_id()))
    folder = tmp_path / "imagenet" / "val" / wnid
    folder.mkdir(parents=True)
    noisy = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for number in (1, 2):
        picture = Image.fromarray(noisy).resize((400, 300), Image.Resampling.BILINEAR)
        picture.save(folder / f"ILSVRC2012_val_{number:08d}.JPEG", quality=95)
    pipeline = imagenet_ccc.open_pipeline(tmp_path)
    assert pipeline._raw(1).shape == (300, 400, 3)
    images = pipeline.cropped(np.array([0, 1]), np.array([5, 6]), 43)
    assert images.shape == (2, 3, 224, 224)
    assert not torch.equal(pipeline.encoded(images), images)
    assert pipeline.ids(np.array([0, 1]), np.array([5, 6])) == [(5 << 40) + 1, (6 << 40) + 2]


# Matrices and runs ------------------------------------------------------------------------------


def test_a_matrix_is_measured_once_and_taken_up_where_it_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path))
    asked = {"images": 4, "noises": ",".join(PAIR)}

    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 2 * 441 * 4
        if done == 3 * 21 * 4:
            raise StopError

    with pytest.raises(StopError):
        measure("fashion-mnist-ccc", "fashion-resnet", **asked, progress=stop)
    with pytest.raises(StreamError, match="lacks 2 of 2 pairs"):
        make(20)
    rest = measure("fashion-mnist-ccc", "fashion-resnet", **asked)
    assert rest["forwards"] == (2 * 441 - 3 * 21) * 4
    assert measure("fashion-mnist-ccc", "fashion-resnet", **asked)["forwards"] == 0
    matrix = Matrix(about=json.loads((Path(rest["folder"]) / "about.json").read_text()))
    assert matrix.key == rest["key"]
    # A cell by hand.
    from tta.backbones import load

    pipeline = fashion_mnist_ccc.open_pipeline()
    positions = streams.order.rng(0, "ccc", "matrix").choice(10_000, 4, replace=False)
    images = pipeline.cropped(positions, np.arange(4), 0)
    ids = pipeline.ids(positions, np.arange(4))
    images = corrupt_between(images, PAIR[0], 1.25, ids=ids)
    images = corrupt_between(images, PAIR[1], 0.5, ids=ids)
    with torch.no_grad():
        hits = load("fashion-resnet").model(images / 255).argmax(1).numpy()
    expected = int((hits == pipeline.clean.labels[positions]).sum())
    assert matrix.counts(*PAIR)[5, 2] == expected
    assert (matrix.counts(*PAIR) != UNKNOWN).all()
    assert len(make(20)) == 15


def test_the_command_measures_and_a_wrong_stream_is_named() -> None:
    runner = CliRunner()
    wrong = ["data", "ccc-matrix", "fashion-mnist-c", "--backbone", "fashion-resnet"]
    done = runner.invoke(app, wrong)
    assert done.exit_code == 2
    assert "needs no accuracy matrix; those that do: ccc, cifar10-ccc, fashion-mnist-ccc" in (
        done.output
    )
    for words, said in [
        (["--backbone", "fashion-resne"], "did you mean 'fashion-resnet'"),
        (["--backbone", "fashion-resnet", "--images", "10001"], "images=10001 is out of range"),
        (["--backbone", "fashion-resnet", "--level", "x"], "level='x' is none of"),
    ]:
        done = runner.invoke(app, ["data", "ccc-matrix", "fashion-mnist-ccc", *words])
        assert done.exit_code == 2
        assert said in done.output


def test_a_run_resumes_and_the_matrix_is_no_part_of_its_name(tmp_path: Path) -> None:
    chosen = {"backbone": "fashion-resnet", "batch_size": 60, "source_options": OPTIONS}
    spec = benchmarks.resolve("tent", "fashion-mnist-ccc", **chosen)
    named = benchmarks.resolve(
        "tent",
        "fashion-mnist-ccc",
        **{**chosen, "source_options": {**OPTIONS, "matrix": "fashion-resnet"}},
    )
    assert spec.protocol == named.protocol
    assert spec.identity() == named.identity()
    whole = benchmarks.run(spec, tmp_path / "whole")
    assert whole["num_samples"] == 300
    assert "error_pct_easy" in whole
    assert len(whole["visit_error_pct"]) == len(make(20).source.trajectory.starts)
    assert whole["round_error_pct"] is None  # paths have different lengths

    class StopError(Exception):
        pass

    def stop(done: int, total: int, error: float) -> None:
        if done == 2:
            raise StopError

    with pytest.raises(StopError):
        benchmarks.run(spec, tmp_path / "cut", checkpoint_seconds=0, progress=stop)
    resumed = benchmarks.run(spec, tmp_path / "cut", resume=True)
    for row in (whole, resumed):
        for key in TIMING_FIELDS:
            row.pop(key)
    assert whole == resumed
    steps = pq.read_table(next((tmp_path / "cut").glob("*/steps.parquet"))).to_pydict()
    assert max(steps["visit"]) == len(whole["visit_error_pct"]) - 1
    assert ccc.VERSION == "1"
