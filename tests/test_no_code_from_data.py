"""No call of the source runs code that a file brings, and secrets stay out of what is written."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import benchmarks
import tta
from benchmarks.cli import app
from benchmarks.store import FILE, Store
from streams.errors import StreamError
from streams.fetch import Options, fetch
from streams.secrets import MASK, masked, without_secrets

ROOT = Path(tta.__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("streams", "tta", "continual", "benchmarks", "tests/parity")
    for path in (ROOT / package).rglob("*.py")
)
# Calls that are never right on a file of somebody else.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("shelve.open", "dill.load", "dill.loads", "joblib.load", "cloudpickle.load"),
    *("cloudpickle.loads", "torch.jit.load", "pd.read_pickle", "pandas.read_pickle"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"),
    *("shutil.unpack_archive", "np.fromregex", "torch.hub.load"),
}
# Methods of an archive that write where the archive says.
FORBIDDEN_METHODS = {"extractall", "extract"}
# A word that must be given, and its only value.
REQUIRED = {
    **dict.fromkeys(("torch.load",), ("weights_only", True)),
    **dict.fromkeys(("np.load", "numpy.load"), ("allow_pickle", False)),
}
# Its own bytes, made two lines above, for a process of its own.
ALLOWED = {("tta/checks.py", "pickle.loads")}


def faults(text: str) -> Iterator[tuple[int, str]]:
    """Line and call of what must not be there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "os"):
            yield from (
                (node.lineno, f"{node.module}.{a.name}")
                for a in node.names
                if f"{node.module}.{a.name}" in FORBIDDEN
            )
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: word.value for word in node.keywords}
        if name in FORBIDDEN:
            yield node.lineno, name
        if name.rpartition(".")[2] in FORBIDDEN_METHODS and "." in name:
            yield node.lineno, name
        if name in REQUIRED:
            word, value = REQUIRED[name]
            said = given.get(word)
            if not isinstance(said, ast.Constant) or said.value is not value:
                yield node.lineno, f"{name} without {word}={value}"
        shell = given.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            yield node.lineno, f"{name} with a shell"


def test_the_reader_finds_what_it_looks_for() -> None:
    text = (
        "import torch, pickle\nfrom pickle import loads\ntorch.load(f)\n"
        "torch.load(f, weights_only=False)\ntorch.load(f, weights_only=True)\nnp.load(f)\n"
        "np.load(f, allow_pickle=False)\neval('1')\nmodel.eval()\ntar.extractall('x')\n"
        "run(c, shell=True)\npickle.dumps(x)\n"
    )
    assert [line for line, _ in sorted(faults(text))] == [2, 3, 4, 6, 8, 10, 11]


@pytest.mark.parametrize("file", FILES)
def test_no_code_from_data(file: str) -> None:
    found = [
        f"{file}:{line}: {call}"
        for line, call in faults((ROOT / file).read_text("utf-8"))
        if (file, call) not in ALLOWED
    ]
    assert not found, "\n".join(found)


def test_pickles_are_subclassed_in_one_place() -> None:
    """The one own unpickler answers three names with stand-ins (tests/test_sources.py)."""
    found = [f for f in FILES if "(pickle.Unpickler)" in (ROOT / f).read_text("utf-8")]
    assert found == ["streams/readers/cifar_pickle.py"]


SECRET = "s3cret-value-9"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"https://me:{SECRET}@host/x", f"https://{MASK}@host/x"),
        (f"https:/me:{SECRET}@host/x", f"https:/{MASK}@host/x"),
        (
            f"see s3://{SECRET}@b, http://a/b?token={SECRET}&x=1",
            f"see s3://{MASK}@b, http://a/b?token={MASK}&x=1",
        ),
        (f"http://a/?X-Amz-Signature={SECRET}", f"http://a/?X-Amz-Signature={MASK}"),
        ("http://host/a@b?key2=1", "http://host/a@b?key2=1"),
        ("nobody@example.org, 12:30", "nobody@example.org, 12:30"),
    ],
)
def test_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, SECRET)
        assert masked(f"failed with {SECRET}!") == f"failed with {MASK}!"
        monkeypatch.delenv(name)
        assert SECRET in masked(SECRET)
    monkeypatch.setenv("HF_TOKEN", "12345678")
    value = {"a": [12345678, "x12345678"], "b": (None, True)}
    assert without_secrets(value) == {"a": [12345678, f"x{MASK}"], "b": [None, True]}


@pytest.fixture
def _secretive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    for name in ("WANDB_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, SECRET)


def everything_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("_secretive")
def test_no_secret_in_the_files_of_a_run(tmp_path: Path) -> None:
    address = f"https://me:{SECRET}@host/data"
    spec = benchmarks.resolve(
        *("source", "fashion-mnist-c"),
        data_dir=address,
        source_dir=f"runs/{SECRET}",
        **{"num_examples": 20, "batch_size": 20, "corruptions": ("fog",)},
    )
    benchmarks.run(spec, tmp_path / "out")
    said = json.loads(next(tmp_path.glob("out/*/spec.json")).read_text("utf-8"))
    assert said["data_dir"] == f"https://{MASK}@host/data"
    store = Store(tmp_path / "out")
    store.mark("b", "failed", method="m", stream="s", setting="c", seed=0, reason=address)
    store.put(store.rows()[0] | {"provenance": address})
    assert (tmp_path / "out" / FILE).is_file()
    assert SECRET.encode() not in everything_below(tmp_path)


@pytest.mark.usefixtures("_secretive")
def test_no_secret_in_an_error_line(tmp_path: Path) -> None:
    address = f"https://me:{SECRET}@127.0.0.1:1"
    for words in (
        ("run", "-m", "tent", "-s", "cifar10-c", "--data-dir", address),
        ("run", "-m", "tent", "-s", "fashion-mnist-c", "--checkpoint", f"{address}/x.pth"),
        ("data", "fetch", "cifar10", "--mirror", address, "--retries", "0", "--offline"),
        ("leaderboard", address),
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2, words
        assert SECRET not in done.output, words
    with pytest.raises(StreamError) as caught:
        fetch([f"{address}/a.bin"], tmp_path / "a.bin", options=Options(retries=0))
    assert "127.0.0.1:1/a.bin" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert SECRET.encode() not in everything_below(tmp_path)


def test_names_in_a_checkpoint_lead_nowhere(tmp_path: Path) -> None:
    from benchmarks.results import RunFolder

    (tmp_path / "x.parquet").write_bytes(b"secret")
    for parts in (["../../x.parquet"], ["/etc/passwd"], "steps-000000.parquet", None, [1]):
        folder = RunFolder(tmp_path / "run")
        folder.create({})
        torch.save({"step": 1, "parts": parts}, tmp_path / "run" / "checkpoint" / "state.pt")
        with pytest.raises(benchmarks.UsageError, match="is damaged"):
            RunFolder(tmp_path / "run").load("cpu")
    assert (tmp_path / "x.parquet").read_bytes() == b"secret"
