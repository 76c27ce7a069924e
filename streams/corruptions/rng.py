"""Random numbers that belong to an image, not to a batch.

Every image gets a Philox stream (Salmon et al.: Parallel random numbers: as easy as 1, 2, 3,
2011) whose key mixes seed, image id, corruption and severity. A counter-based generator needs
only that key, so one object serves a whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np


def stream_key(seed: int, image_id: int, name: str, severity: int) -> tuple[int, int]:
    """Mix what identifies a sample into the two 64-bit words of a Philox key."""
    text = f"{seed}/{image_id}/{name}/{severity}".encode()
    digest = blake2b(text, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random streams of a batch, one per image.

    Args:
        seed: Seed of the stream.
        ids: Image ids, one per image of the batch.
        name: Corruption.
        severity: 1 to 5.
    """

    seed: int
    ids: Sequence[int]
    name: str
    severity: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __iter__(self) -> Iterator[np.random.Generator]:
        """Yield for each image the generator at the start of its stream.

        It is one object that moves from image to image: draw before the next step.
        """
        # The seed is replaced at once; giving one spares the search for entropy.
        bits = np.random.Philox(np.random.SeedSequence(0))
        generator = np.random.Generator(bits)
        for image_id in self.ids:
            start: Any = _start(stream_key(self.seed, image_id, self.name, self.severity))
            bits.state = start
            yield generator


def _start(key: tuple[int, int]) -> dict[str, Any]:
    return {
        "bit_generator": "Philox",
        "state": {"counter": np.zeros(4, np.uint64), "key": np.array(key, np.uint64)},
        "buffer": np.zeros(4, np.uint64),
        "buffer_pos": 4,  # used up: the first draw computes a block
        "has_uint32": 0,
        "uinteger": 0,
    }
