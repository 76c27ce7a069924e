"""CCC: images under two corruptions whose severities change all the time.

Press et al.: RDumb: A simple approach that questions our progress in continual test-time
adaptation, 2023, arXiv:2306.05401. The order is the source's own: ``speed`` images at each grid
step of a walk through severities (``streams.ccc_path``). The pixels of a sample depend on the image
id, the place in the stream, the pair, the severities and the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streams import corruptions as engine
from streams import membership, order
from streams.ccc_matrix import find_matrix
from streams.ccc_path import LEVELS, Trajectory, find_path, walk
from streams.clean import CleanImages, OverClean
from streams.errors import StreamError
from streams.random_crop import flip_and_crop
from streams.settings import Request
from streams.types import CLEAN, Domain, Ints, Provenance

if TYPE_CHECKING:
    from torch import Tensor

PAPER_IMAGES = 7_500_000
SMALL_IMAGES = 150_000
"""Length over 32x32 images, where the paper has none: as many as 15 corruptions of 10,000."""
VERSION = "1"
"""Changes whenever a pixel, a draw or a path of CCC does."""

Corruptions = Sequence[tuple[str, float]]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """From clean images to doubly corrupted ones.

    Attributes:
        stream: Name of the stream.
        clean: The images.
        side: Rows and columns of the result.
        profile: Table of strengths.
        least: Smallest share of the area that the random crop keeps.
        jpeg_quality: Quality of the last encoding; ``None`` leaves it out.
    """

    stream: str
    clean: CleanImages
    side: int
    profile: str
    least: float
    jpeg_quality: int | None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the pixels depend on, beside the draws."""
        return {
            "clean": self.clean.digest,
            "ccc": VERSION,
            "generator": engine.GENERATOR_VERSION,
            "parameters": self.profile,
            "frost": engine.frost_digest(),
            "side": self.side,
            "crop": self.least,
            "jpeg": self.jpeg_quality,
        }

    def cropped(self, positions: Ints, samples: Ints, seed: int) -> Tensor:
        """Flipped and cropped images ``(B, 3, side, side)`` uint8, keyed by (seed, sample)."""
        import torch

        made = [
            flip_and_crop(self._raw(p), self.side, self.least, order.rng(seed, "ccc", "crop", s))
            for p, s in zip(positions.tolist(), samples.tolist(), strict=True)
        ]
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous()

    def corrupted(self, images: Tensor, pair: Corruptions, ids: Sequence[int], seed: int) -> Tensor:
        """The corruptions in their order."""
        for name, severity in pair:
            images = engine.corrupt_between(
                images, name, severity, ids=ids, seed=seed, profile=self.profile
            )
        return images

    def encoded(self, images: Tensor) -> Tensor:
        """The last step: encoded as the stream stores its images."""
        if self.jpeg_quality is None:
            return images
        return engine.recompress(images, quality=self.jpeg_quality)

    def ids(self, positions: Ints, samples: Ints) -> list[int]:
        """Keys of the draws: image id and place in the stream in one number."""
        own = positions if self.clean.ids is None else self.clean.ids[positions]
        return [(s << 40) + i for s, i in zip(samples.tolist(), own.tolist(), strict=True)]

    def _raw(self, position: int) -> NDArray[np.uint8]:
        if self.clean.raw is not None:
            return self.clean.raw(position)
        image: NDArray[np.uint8] = self.clean.read(np.array([position]))[0].permute(1, 2, 0).numpy()
        return image


def small_pipeline(stream: str, clean: CleanImages) -> Pipeline:
    """The pipeline of 32x32 images: a mild crop, the strengths of CIFAR-10-C, no encoding."""
    return Pipeline(
        stream=stream, clean=clean, side=32, profile="cifar", least=0.64, jpeg_quality=None
    )


@dataclass(frozen=True, kw_only=True)
class CccSource(OverClean):
    """A source with an order of its own; its one domain is the level.

    Attributes:
        pipeline: How the pixels are made.
        level: ``easy``, ``medium`` or ``hard``.
        speed: Images at each grid step.
        seed: Key of corruptions, images, crops and draws.
        total: Images of the stream.
        matrix: The matrix in words.
        trajectory: Corruptions and severities by grid step.
    """

    pipeline: Pipeline
    level: str
    speed: int
    seed: int
    total: int
    matrix: str
    trajectory: Trajectory

    @cached_property
    def provenance(self) -> Provenance:
        """Images, generator, level, speed, seed, matrix, and the share of the paper's length."""
        part = "" if self.total >= PAPER_IMAGES else f" (subsampled from {PAPER_IMAGES})"
        jpeg = self.pipeline.jpeg_quality
        encoded = {} if jpeg is None else {"encoded": f"JPEG {jpeg}"}
        baseline, noises = LEVELS[self.level]
        own = self.trajectory.noises
        return Provenance(
            kind="generated",
            detail={
                "clean": self.clean.name,
                **self.clean.facts,
                "ccc": f"{VERSION}, {self.level}: {baseline} % of {len(own)} corruptions",
                **({} if own == noises else {"corruptions": "+".join(own)}),
                "speed": str(self.speed),
                "seed": str(self.seed),
                "length": f"{self.total}{part}",
                "matrix": self.matrix,
                **encoded,
                "generator": f"tta-bench {engine.GENERATOR_VERSION}",
                "parameters": self.pipeline.profile,
                "frost": engine.frost_source(),
            },
        )

    @cached_property
    def digest(self) -> str:
        """Hash of the images, of all the pixels depend on, and of the walk."""
        text = f"{self.clean.digest}/{self.pipeline.facts}/{self.provenance}"
        made = hashlib.sha256(text.encode())
        made.update(self.trajectory.pairs.tobytes() + self.trajectory.grid.tobytes())
        return made.hexdigest()

    def domains(self, corruptions: Sequence[str], severity: int | Sequence[int]) -> list[Domain]:
        """The level."""
        return membership.choose([self._domain], corruptions, severity, self.pipeline.stream)

    def check(self, domain: Domain) -> None:
        """Raise ``StreamError`` for anything but the level and the clean images."""
        if domain not in (CLEAN, self._domain):
            raise StreamError(f"{self.pipeline.stream} is {self.level} here, not {domain.name!r}")

    def plan(self, request: Request) -> order.Plan:
        """``speed`` images at each grid step, none twice in one step where there are enough."""
        pool = request.positions.astype(np.int32)
        steps = range(len(self.trajectory))
        if request.shuffle:
            positions = np.concatenate([self._drawn(pool, step) for step in steps])[: self.total]
        else:
            positions = np.resize(pool, self.total)
        starts = np.array(self.trajectory.starts, dtype=np.int64) * self.speed
        return order.Plan(
            domains=request.domains,
            positions=positions,
            domain_ids=np.zeros(self.total, dtype=np.int8),
            offsets=order.in_batches([self.total], request.batch_size),
            visit_starts=tuple(starts[starts < self.total].tolist()),
        )

    def images(self, positions: Ints, domain: Domain) -> Tensor:
        """Clean images ``(B, 3, side, side)`` uint8: the others need their place in the stream."""
        self.check(domain)
        if domain != CLEAN:
            raise StreamError(f"{self.pipeline.stream} has no image without a place in the stream")
        return self.clean.read(positions)

    def images_at(self, positions: Ints, domain: Domain, samples: Ints) -> Tensor:
        """Images ``(B, 3, side, side)`` uint8 at places ``(B,)`` in the stream."""
        import torch

        steps = samples // self.speed
        made = []
        for step in np.unique(steps):  # ascending, as the samples are
            here = steps == step
            ids = self.pipeline.ids(positions[here], samples[here])
            images = self.pipeline.cropped(positions[here], samples[here], self.seed)
            pair = self.trajectory.at(int(step))
            made.append(self.pipeline.corrupted(images, pair, ids, self.seed))
        return self.pipeline.encoded(torch.cat(made))

    @property
    def _domain(self) -> Domain:
        return Domain(name=self.level, corruption="ccc", severity=0)

    def _drawn(self, pool: NDArray[np.int32], step: int) -> NDArray[np.int32]:
        generator = order.rng(self.seed, "ccc", "images", step)
        whole, rest = divmod(self.speed, len(pool))
        passes = [generator.permutation(pool) for _ in range(whole)]
        return np.concatenate([*passes, generator.choice(pool, rest, replace=False)])


def open_ccc(
    pipeline: Pipeline, *, level: str, speed: Any, seed: Any, total: Any, matrix: str, noises: str
) -> CccSource:
    """The source of a walk over the cached matrix.

    Args:
        pipeline: The images.
        level: ``easy``, ``medium`` or ``hard``.
        speed: Images at each grid step, at least 1.
        seed: At least 0.
        total: Images of the stream, at least 1.
        matrix: Which matrix, see ``streams.ccc_matrix.find_matrix``.
        noises: Corruptions, separated by commas, instead of the level's; ``""`` keeps those.

    Raises:
        StreamError: For a wrong option, or where the matrix is missing.
    """
    chosen = level_noises(level, noises)
    speed, seed, total = (
        _whole("speed", speed, 1),
        _whole("seed", seed, 0),
        _whole("total_images", total, 1),
    )
    pairs = f"--noises {','.join(chosen)}" if noises else f"--level {level}"
    found = find_matrix(pipeline.stream, pipeline.facts, chosen, str(matrix), pairs)
    baseline = LEVELS[level][0]
    trajectory = walk(
        chosen,
        -(-total // speed),
        seed,
        lambda first, second: find_path(found.accuracy(first, second), baseline),
    )
    return CccSource(
        clean=pipeline.clean,
        pipeline=pipeline,
        level=level,
        speed=speed,
        seed=seed,
        total=total,
        matrix=str(found),
        trajectory=trajectory,
    )


def level_noises(level: str, noises: str = "") -> tuple[str, ...]:
    """The corruptions of a level, or those named.

    Raises:
        StreamError: For an unknown level or corruption.
    """
    from streams.corruptions.registry import find

    if level not in LEVELS:
        raise StreamError(f"level={level!r} is none of {', '.join(LEVELS)}")
    named = tuple(name.strip() for name in noises.split(",") if name.strip())
    for name in named:
        find(name)
    return named or LEVELS[level][1]


def _whole(name: str, value: Any, least: int) -> int:
    try:
        read = int(value)
        if read >= least and str(read) == str(value):
            return read
    except (TypeError, ValueError):
        pass
    raise StreamError(f"{name}={value!r} must be an integer of at least {least}")
