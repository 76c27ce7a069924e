"""Fuzz one family of files: mutations of a small corpus, guided by coverage where atheris is there.

    python tests/fuzz/run.py TARGET [--seconds 600] [--seed 0] [--engine auto] [--out DIR]

A finding is anything but success or one of our errors: another exception, more than the allowed
memory, or no end. Each kind of finding is kept once, as a file below --out; exit status 1 if any.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))

import mutate

if TYPE_CHECKING:
    from targets import Target

# An input of some kilobytes that takes more of either is a bomb.
SECONDS, BYTES = 20, 3 << 30
# Coverage is counted in these.
INSTRUMENTED = ["streams", "tta", "benchmarks", "tarfile", "zipfile", "tomllib", "numpy.lib"]


@dataclass
class Session:
    """Inputs so far, and one input of each kind of finding."""

    target: Target
    work: Path
    out: Path | None = None
    count: int = 0
    refused: int = 0
    findings: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def call(self, kind: str, data: bytes) -> None:
        """Try one input and keep it where it shows something new."""
        self.count += 1
        if self.out is not None:  # a fault in native code leaves no other trace
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "current").write_bytes(kind.encode() + b"\n" + data)
        try:
            with limited():
                self.refused += self.target.call(kind, data, self.work)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            where = own_frame(error)
            key = f"{type(error).__name__} at {where}"
            if key in self.findings:
                return
            self.findings[key] = (kind, data)
            print(f"finding: {kind}: {key}: {' '.join(str(error).split())[:200]}", file=sys.stderr)
            if self.out is not None:
                number = len(self.findings)
                name = self.out / f"{kind}~{self.target.name}-{type(error).__name__}-{number}"
                name.write_bytes(data)
                name.with_suffix(".txt").write_text(traceback.format_exc(), "utf-8")

    def said(self) -> str:
        """The outcome in a line."""
        return (
            f"{self.target.name}: {self.count} inputs, {self.refused} refused, "
            f"{len(self.findings)} findings"
        )


def own_frame(error: BaseException) -> str:
    """The last line of our own code on the way to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    root = Path(__file__).parents[2]
    ours = [
        f for f in frames if Path(f.filename).is_relative_to(root) and ".venv" not in f.filename
    ]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


@contextmanager
def limited() -> Iterator[None]:
    """An input that takes too long is a ``TimeoutError``."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def bound_memory() -> None:
    """Take no more than ``BYTES`` beside what is mapped by now: a bomb is a ``MemoryError``."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def own_mutations(session: Session, seed: int, seconds: float, most: int | None = None) -> None:
    """Seeded mutations of the corpus until time or number is up."""
    from tqdm import tqdm

    draw, seeds = random.Random(f"{seed}/{session.target.name}"), session.target.seeds()
    for kind, data in seeds:
        session.call(kind, data)
    end = time.monotonic() + seconds
    with tqdm(total=int(seconds), desc=session.target.name, unit="s", disable=None) as bar:
        while (left := end - time.monotonic()) > 0 and (most is None or session.count < most):
            kind, data = draw.choice(seeds)
            others = [other for name, other in seeds if name == kind]
            session.call(kind, mutate.mutated(data, others, draw))
            bar.update(int(seconds - left) - bar.n)


def guided(session: Session, seed: int, seconds: float) -> None:
    """The same inputs grown by libFuzzer through atheris; never returns.

    The first byte of an input says its kind.
    """
    import atheris

    kinds = sorted(session.target.readers)
    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))
    for number, (kind, data) in enumerate(session.target.seeds()):
        (corpus / str(number)).write_bytes(bytes([kinds.index(kind)]) + data)
    end = time.monotonic() + seconds

    def one(data: bytes) -> None:
        if data:
            session.call(kinds[data[0] % len(kinds)], data[1:])
        if time.monotonic() > end:
            print(session.said())
            sys.stdout.flush()
            os._exit(bool(session.findings))  # libFuzzer has no other way to end from here

    given = [str(corpus), f"-artifact_prefix={corpus}/", f"-seed={seed + 1}"]
    atheris.Setup([sys.argv[0], *given, "-rss_limit_mb=0", "-verbosity=0"], one)
    atheris.Fuzz()


def load(name: str, instrument: Any | None = None) -> Target:
    """The target of a name; its code counts coverage where atheris is given."""
    warnings.simplefilter("ignore")
    if instrument is None:
        from targets import TARGETS
    else:
        with instrument.instrument_imports(include=INSTRUMENTED):
            from targets import TARGETS
    if name not in TARGETS:
        sys.exit(f"unknown target {name!r}; known: {', '.join(TARGETS)}")
    return TARGETS[name]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("auto", "atheris", "own"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("results/fuzz"))
    given = parser.parse_args()
    atheris = None
    if given.engine != "own":
        try:
            import atheris
        except ImportError:
            if given.engine == "atheris":
                sys.exit("atheris is not installed: pip install '.[fuzz]'")
    target = load(given.target, atheris)
    os.environ.setdefault("COLUMNS", "120")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        os.environ["TTA_BENCH_CACHE"] = f"{name}/cache"
        session = Session(target, Path(name) / "work", given.out)
        for kind, data in target.seeds():  # imports what is imported late
            session.call(kind, data)
        bound_memory()
        if atheris is not None:
            guided(session, given.seed, given.seconds)
        own_mutations(session, given.seed, given.seconds)
        print(session.said())
        sys.exit(bool(session.findings))


if __name__ == "__main__":
    main()
