"""CCC's accuracy matrices in the cache folder: one folder a model, a file for each pair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streams.cache import cache_dir
from streams.ccc_path import POINTS
from streams.errors import StreamError
from streams.jsonfiles import read_json, write_json
from streams.types import Ints

_ABOUT = "about.json"
UNKNOWN = -1
"""Count of a cell that was not measured yet."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Hits of one model under every pair of corruptions measured so far.

    Attributes:
        about: What fixes the counts: ``backbone``, ``weights``, ``images``, and the facts of the
            stream's images.
    """

    about: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Hash of all but the backbone's name."""
        facts = {key: value for key, value in self.about.items() if key != "backbone"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def folder(self) -> Path:
        """Where the counts are."""
        return cache_dir() / "ccc" / self.key

    def __str__(self) -> str:
        return f"{self.key[:8]} ({self.about['backbone']}, {self.about['images']} images)"

    def counts(self, first: str, second: str) -> Ints:
        """Hits ``(21, 21)`` of an ordered pair, ``UNKNOWN`` where a cell is missing.

        Raises:
            StreamError: If the file is damaged.
        """
        path = self._file(first, second)
        if not path.is_file():
            return np.full((POINTS, POINTS), UNKNOWN, dtype=np.int64)
        made = np.array(read_json(path).get("correct"), dtype=object)
        if made.shape != (POINTS, POINTS) or not all(isinstance(v, int) for v in made.flat):
            raise StreamError(f"{path} is damaged: remove it, and measure the pair again")
        return made.astype(np.int64)

    def save(self, first: str, second: str, counts: Ints) -> None:
        """Write the counts of a pair; the file is whole or not there.

        Raises:
            StreamError: If the cache folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / _ABOUT, self.about)
            write_json(self._file(first, second), {"correct": counts.tolist()})
        except OSError as error:
            raise StreamError(
                f"cannot write to {self.folder} ({error.strerror}); TTA_BENCH_CACHE names another"
            ) from error

    def missing(self, noises: Sequence[str]) -> list[tuple[str, str]]:
        """Ordered pairs with a cell that was not measured."""
        return [
            (first, second)
            for first in noises
            for second in noises
            if first != second and (self.counts(first, second) == UNKNOWN).any()
        ]

    def accuracy(self, first: str, second: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Accuracy in percent ``(21, 21)``."""
        return 100.0 * self.counts(first, second) / int(self.about["images"])

    def _file(self, first: str, second: str) -> Path:
        return self.folder / f"{first}+{second}.json"


def find_matrix(
    stream: str,
    facts: Mapping[str, Any],
    noises: Sequence[str],
    wanted: str,
    pairs: str = "",
) -> Matrix:
    """The cached matrix of a stream's images.

    Args:
        stream: Name of the stream, for messages.
        facts: Facts of its images.
        noises: Corruptions whose ordered pairs must all be there.
        wanted: Start of a key (8 digits or more) or name of a backbone; ``""`` takes the only one.
        pairs: Option of the command that measures the pairs, for messages: ``--level hard``.

    Raises:
        StreamError: If there is none, or several, or the one is unfinished; one line that says
            what to run.
    """
    root = cache_dir() / "ccc"
    found = [Matrix(about=read_json(path)) for path in sorted(root.glob(f"*/{_ABOUT}"))]
    fits = [m for m in found if all(m.about.get(key) == value for key, value in facts.items())]
    named = [m for m in fits if not wanted or _answers(m, wanted)]
    words = f"tta-bench data ccc-matrix {stream} --backbone NAME {pairs}".strip()
    command = f"'{words}'"
    if not named:
        which = f" {wanted!r}" if wanted else ""
        have = f"; there are {', '.join(map(str, fits))}" if fits else ""
        raise StreamError(
            f"{stream} has no accuracy matrix{which} in {root}{have}: run {command} first, which "
            "measures one for your model (docs/ccc.md says what it costs)"
        )
    if len(named) > 1:
        raise StreamError(
            f"{stream} has several accuracy matrices: {', '.join(map(str, named))}; name one with "
            f"--source-set matrix={named[0].key[:8]}"
        )
    if missing := named[0].missing(noises):
        raise StreamError(
            f"accuracy matrix {named[0]} of {stream} lacks {len(missing)} of "
            f"{len(noises) * (len(noises) - 1)} pairs, such as {'+'.join(missing[0])}: go on with "
            f"{command.replace('NAME', str(named[0].about['backbone']))}"
        )
    return named[0]


def _answers(matrix: Matrix, wanted: str) -> bool:
    return matrix.about["backbone"] == wanted or (
        len(wanted) >= 8 and matrix.key.startswith(wanted)
    )
