"""Random numbers that belong to an image, not to a batch.

Every image gets a stream of its own, whose key mixes seed, image id, corruption and severity. The
first generation of profiles draws from Philox (Salmon et al.: Parallel random numbers: as easy as
1, 2, 3, 2011) with numpy's distributions; the second draws 16 bits a value from SFC64, which is
several times faster on photographs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEVELS = 1 << 16


def stream_key(seed: int, image_id: int, name: str, severity: float) -> tuple[int, int]:
    """Mix what identifies a sample into two 64-bit words."""
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
        severity: 1 to 5, or a float between the integers from 0 on.
        generation: Of the profile: 1 gives Philox streams, 2 gives SFC64 streams.
    """

    seed: int
    ids: Sequence[int]
    name: str
    severity: float
    generation: int = 1

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __iter__(self) -> Iterator[np.random.Generator]:
        """Yield for each image the generator at the start of its stream.

        It may be one object that moves from image to image: draw before the next step.
        """
        keys = (stream_key(self.seed, i, self.name, self.severity) for i in self.ids)
        if self.generation > 1:
            for key in keys:
                yield np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))
            return
        # The seed is replaced at once; giving one spares the search for entropy.
        bits = np.random.Philox(np.random.SeedSequence(0))
        generator = np.random.Generator(bits)
        for key in keys:
            start: Any = _start(key)
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


def words(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Uniform integers from 0 to 65,535, four from each step of the generator."""
    count = prod(shape)
    raw: Any = generator.bit_generator
    steps: NDArray[np.uint64] = raw.random_raw(-(-count // 4)).astype("<u8", copy=False)
    return steps.view("<u2")[:count].reshape(shape)


def integers(generator: np.random.Generator, bound: int, shape: tuple[int, ...]) -> Any:
    """Integers from 0 to ``bound - 1``, int32; equally likely within ``bound / 65536``."""
    scaled = words(generator, shape).astype(np.int32)
    scaled *= bound
    scaled >>= 16
    return scaled


def uniform(
    generator: np.random.Generator, low: float, high: float, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Uniform values in ``(low, high)`` in 65,536 steps, float32."""
    out = words(generator, shape).astype(np.float32)
    out *= (high - low) / _LEVELS
    out += low + (high - low) / _LEVELS / 2
    return out


def normal(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal values, float32: one of 65,536 equally likely cells, then its median.

    The cells are far narrower than a grey level except the two outermost, beyond 4.17; there the
    value is drawn within the cell, so the tails are those of the normal distribution.
    """
    from scipy.special import ndtri

    cells = words(generator, shape)
    out: NDArray[np.float32] = _medians().take(cells)
    # Adding one in 16 bits makes the outermost cells 0 and 1.
    outermost = np.flatnonzero((cells.ravel() + np.uint16(1)) < 2)
    if len(outermost):
        tail = ndtri((1 - generator.random(len(outermost))) / _LEVELS)
        sign = np.where(cells.ravel()[outermost] == 0, 1, -1)
        out.ravel()[outermost] = tail * sign
    return out


@lru_cache(maxsize=1)
def _medians() -> NDArray[np.float32]:
    from scipy.special import ndtri

    medians: NDArray[np.float32] = ndtri((np.arange(_LEVELS) + 0.5) / _LEVELS).astype(np.float32)
    return medians
