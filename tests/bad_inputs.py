"""Wrong command lines: each with words of its one-line answer; also writes docs/bad_inputs.md.

    python tests/bad_inputs.py docs/bad_inputs.md

Each runs in a folder that ``make_folder`` made, and changes nothing there.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import tempfile
from pathlib import Path

RUN = "run -m tent -s fashion-mnist-c --num-examples 20"
ARRAYS = "run -m tent -s npy-folder --corruptions fog --backbone fashion-resnet --data-dir"
LEARN = "run -m naive -s split-fashion-mnist --backbone small-cnn --num-examples 20"
TUNE = "tune -m tent -s fashion-mnist-c --num-examples 20"

# A command line, and words that its answer has.
BAD = {
    # The command line itself.
    "leaderbord results": "Did you mean 'leaderboard'?",
    f"{RUN} --methud x": "No such option: --methud",
    "run -s fashion-mnist-c": "Missing option '--method'",
    f"{RUN} --workers -1": "--workers",
    f"{RUN} --window 0": "--window",
    f"{RUN} --checkpoint-seconds soon": "--checkpoint-seconds",
    # run: names.
    "run -m deyoo -s fashion-mnist-c": "did you mean 'deyo'",
    f"{RUN} -m tentt": "did you mean 'tent'",
    "run -m 'x*' -s fashion-mnist-c": "no method matches",
    "run -m , -s fashion-mnist-c": "empty list of names",
    "run -m tent -s fashion-mnst-c": "did you mean 'fashion-mnist-c'",
    f"{RUN} --setting continuous": "did you mean 'continual'",
    f"{RUN} --protocol fashion-mnist-c-reset-v2": "fashion-mnist-c-reset-v1",
    f"{RUN} --order rottaa": "rottaa",
    f"{RUN} --log tensorbord": "known trackers",
    # run: values.
    f"{RUN} --severity 9": "it must be 1, 2, 3, 4 or 5",
    f"{RUN} --severity high": "expected integers",
    f"{RUN} --corruptions fogg": "did you mean 'fog'",
    f"{RUN} --corruptions fog --severity 5,5": "named twice",
    f"{RUN} --set learning_rat=1": "unknown option 'learning_rat'",
    f"{RUN} --set lr=-1": "must be above 0",
    f"{RUN} --set lr=nan": "must be above 0",
    f"{RUN} --set lr=fast": "lr='fast'",
    f"{RUN} --set lr": "expected key=value",
    f"{RUN} --set deyo.lr=1": "not among the methods",
    f"{RUN} --setting recurring --setting-set visits=0": "visits",
    f"{RUN} --setting recurring --setting-set visit=2": "did you mean 'visits'",
    f"{RUN} --source-set size=3": "size",
    f"{RUN} --num-examples 20000": "has 10000 images",
    f"{RUN} --num-examples 0": "num_examples",
    f"{RUN} --batch-size 0": "batch_size",
    f"{RUN} --seed -1": "seed",
    f"{RUN} --seed one": "expected integers",
    f"{RUN} --dtype float16": "dtype",
    f"{RUN} --device cuda:99": "not available",
    f"{RUN} --device gpu": "not available",
    f"{RUN} --mean 0.5": "mean",
    f"{RUN} --mean a,b,c": "expected numbers",
    f"{RUN} --open-set held-out:99": "99",
    f"{RUN} --open-ratio 2": "give both",
    f"{RUN} --norm groupnorm": "groupnorm",
    f"{RUN} --num-tasks 3": "is for learning streams",
    f"{RUN} --tuned none.toml": "cannot read none.toml",
    f"{RUN} --tuned broken.toml": "cannot read broken.toml",
    # run: models and data.
    f"{RUN} --backbone timm:resnet9999": "did you mean",
    f"{RUN} --backbone tim:resnet18": "did you mean 'timm'",
    f"{RUN} --backbone cifar-resnet20": "--checkpoint",
    f"{RUN} --checkpoint absent.pth": "no such file",
    f"{RUN} --checkpoint page.pth": "web page saved as weights",
    f"{RUN} --checkpoint empty.safetensors": "empty",
    f"{RUN} --checkpoint other.safetensors": "does not fit",
    f"{RUN} --checkpoint evil.pth": "would run code",
    f"{RUN} --checkpoint broken.toml": "cannot tell",
    "run -m tent -s cifar10-c --backbone fashion-resnet": "Zenodo record 2535967",
    "run -m tent -s imagenet-c --data-dir none --backbone timm:x": "Zenodo record 2235448",
    "run -m tent -s npy-folder --backbone fashion-resnet": "--data-dir",
    f"{ARRAYS} none": "labels.npy is missing",
    f"{ARRAYS} truncated": "fog.npy cannot be read (truncated",
    f"{ARRAYS} objects": "it holds Python objects",
    f"{ARRAYS} channels": "images must be uint8 (N, H, W, 3)",
    f"{ARRAYS} range": "label -3 at index 7 is out of range",
    f"{ARRAYS} classes": "has 10 classes, stream npy-folder has 30",
    f"{ARRAYS.replace('fog', 'snow')} classes": "snow.npy is missing",
    f"{RUN} --out file": "name another --out",
    f"{RUN} --out file/below": "name another --out",
    f"{RUN} --out /proc/results": "name another --out",
    # Learning streams.
    f"{LEARN} --severity 3": "has no effect on a learning stream",
    f"{LEARN} -m naiv": "naive",
    f"{LEARN} --num-tasks 99": "99",
    f"{LEARN} --set epoch=1": "epochs",
    "run -m naive -s split-fashion-mnst": "split-fashion-mnist",
    # Lists and descriptions.
    "list method": "did you mean 'methods'",
    "describe": "either --stream or --method",
    "describe -m tentt": "did you mean 'tent'",
    "describe -s fashion-mnst-c": "did you mean 'fashion-mnist-c'",
    # Data.
    "data fetch cifar11": "did you mean 'cifar10'",
    "data fetch cifar10 --file x.bin --offline": "x.bin",
    "data fetch cifar10 --offline --data-dir none": "the network is off",
    "data fetch cifar10 cifar100 --file x": "name one data set only",
    "data verify cifar11": "did you mean 'cifar10'",
    "data generate mnist --out made": "mnist",
    "data generate fashion-mnist --out made --corruptions fogg": "did you mean 'fog'",
    "data generate fashion-mnist --out made --num-examples 0": "num_examples",
    "data ccc-matrix fashion-mnist-c --backbone fashion-resnet": "fashion-mnist-ccc",
    "pretrain resnet --out x.safetensors": "fashion-resnet",
    "pretrain fashion-resnet --out x.safetensors --data-dir none": "train-images-idx3-ubyte.gz",
    "pretrain fashion-resnet --out x.pth --data-dir none": ".safetensors",
    # Results.
    "leaderboard none": "does not exist",
    "leaderboard empty": "no finished run",
    "leaderboard schema": "schema 99",
    "leaderboard damaged": "not a result of tta-bench",
    "leaderboard nested": "not a result of tta-bench",
    "leaderboard done --export x.xls": "use .csv, .md, .tex or .html",
    "leaderboard done --export file/x.csv": "cannot write",
    "leaderboard garbage": "is damaged",
    "report empty": "no finished run",
    "report done --out page.pdf": "page.pdf",
    "report done --out file/page.html": "cannot write",
    "compare none done": "none is no run",
    "compare done done": "holds several runs or none",
    "compare done done:ffffffff": "done",
    "reproduce -m tentt": "did you mean 'tent'",
    "reproduce --results none": "does not exist",
    "reproduce --protocol nowhere": "nowhere",
    "results ls none": "does not exist",
    "results show done ffff": "ffff",
    "results export done --out runs.xls": ".parquet",
    "results export empty --out runs.csv": "no finished run",
    "results merge merged none": "does not exist",
    "results merge merged garbage": "is damaged",
    "results rm done ffff": "ffff",
    "results gc none": "is no folder",
    "curves none --out c.png": "does not exist",
    "curves done --out c.png": "no",
    "watch none --once": "none",
    # Sweeps, tuning, experiments, profiles, new methods.
    "sweep nosuch": "unknown sweep",
    "sweep none.toml": "cannot read none.toml",
    "sweep broken.toml": "broken.toml",
    "sweep deep.toml": "nested too deeply",
    "sweep unknown.toml": "did you mean 'methods'",
    "sweep method.toml --dry-run": "did you mean 'tent'",
    f"{TUNE} --trials 0": "--trials",
    "tune -m tentt -s fashion-mnist-c": "did you mean 'tent'",
    f"{TUNE} --tune-corruptions fogg": "did you mean 'fog'",
    f"{TUNE} --set lr=-1": "must be above 0",
    "experiment nosuch": "nosuch",
    "experiment broken.toml": "broken.toml",
    "experiment none.toml": "none.toml",
    "profile -m tentt": "did you mean 'tent'",
    "profile -m tent --batch-size 1": "--batch-size",
    "profile -m tent --out table.xls": ".csv",
    "new adapter Tent": "Tent",
    "new adapter ../x": "../x",
    "new adapter tent": "tent",
}


def make_folder(folder: Path) -> None:
    """Files that are wrong in every way, and ``done``, a results folder with a finished run."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from benchmarks import resolve, run

    small = {"num_examples": 20, "batch_size": 20, "corruptions": ("fog",)}
    run(resolve("source", "fashion-mnist-c", **small), folder / "done")
    (folder / "file").touch()
    (folder / "page.pth").write_text("<!DOCTYPE html><html>quota exceeded</html>", "utf-8")
    (folder / "empty.safetensors").touch()
    save_file({"x": torch.zeros(3)}, folder / "other.safetensors")
    torch.save({"model": Evil()}, folder / "evil.pth")
    for name, text in {
        "broken.toml": "methods = [",
        "deep.toml": f"methods = {'[' * 5000}",
        "unknown.toml": 'method = ["tent"]\nmethods = ["tent"]\nstreams = ["fashion-mnist-c"]',
        "method.toml": 'methods = ["tentt"]\nstreams = ["fashion-mnist-c"]',
    }.items():
        (folder / name).write_text(text, "utf-8")
    for name, text in {
        "empty": None,
        "schema": '{"schema_version": 99}',
        "damaged": "[1, 2",
        "nested": "[" * 100_000,
    }.items():
        (folder / name).mkdir()
        if text is not None:
            (folder / name / "result.json").write_text(text, "utf-8")
    (folder / "garbage").mkdir()
    (folder / "garbage" / "results.sqlite").write_bytes(b"no database " * 400)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    for name in ("truncated", "objects", "channels", "range", "classes"):
        (folder / name).mkdir()
        labels = generator.integers(0, 10, 30)
        np.save(folder / name / "labels.npy", np.arange(30) if name == "classes" else labels)
        np.save(folder / name / "fog.npy", pixels)
    file = folder / "truncated" / "fog.npy"
    file.write_bytes(file.read_bytes()[:-10])
    np.save(folder / "objects" / "fog.npy", np.array([{}]), allow_pickle=True)
    np.save(folder / "channels" / "fog.npy", np.zeros((30, 32, 32, 4), dtype=np.uint8))
    labels[7] = -3
    np.save(folder / "range" / "labels.npy", labels)


class Evil:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("ran"),)


def answer(command: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the script, in this process."""
    from benchmarks.cli import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["tta-bench", *shlex.split(command)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = before
    return status, out.getvalue(), err.getvalue()


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file and folder."""
    found = {p.relative_to(folder).as_posix(): p.lstat() for p in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


PAGE = """# Wrong input, and what is said

Every line below is a command that cannot be carried out, and its answer: one line on standard
error, exit status 2, nothing written. Written by `python tests/bad_inputs.py docs/bad_inputs.md`;
`tests/test_bad_inputs.py` runs all of them. Files such as `broken.toml` are what their names say.
"""


def page(answers: dict[str, str]) -> str:
    """The page of the commands and their answers, long lists of names cut."""
    lines = [PAGE]
    for command, line in answers.items():
        said = line.removeprefix("tta-bench: error: ")
        said = said if len(said) <= 240 else f"{said[:240]} …"
        lines.append(f"```console no-run\n$ tta-bench {command}\n{said}\n```\n")
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    target = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        os.environ["TTA_BENCH_CACHE"] = f"{name}/cache"
        (folder := Path(name) / "work").mkdir()
        os.chdir(folder)
        make_folder(folder)
        answers = {command: answer(command)[2].strip() for command in BAD}
        target.write_text(page(answers).replace(f"{folder.resolve()}/", ""), "utf-8")
        os.chdir("/")


if __name__ == "__main__":
    main()
