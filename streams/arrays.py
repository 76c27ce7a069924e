"""Streams over arrays that the caller holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streams.clean import GeneratedSource, check_labels, digest_arrays, in_memory
from streams.domain_orders import arrange
from streams.errors import StreamError
from streams.factory import DEFAULT_BATCH_SIZE, choose_domains, plan_stream
from streams.types import Domain, Ints, Provenance, Stream

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def from_arrays(
    images: ArrayLike | Mapping[str, ArrayLike],
    labels: ArrayLike,
    *,
    corruptions: Sequence[str] | None = None,
    severity: int | Sequence[int] = 5,
    num_classes: int | None = None,
    name: str = "arrays",
    setting: str = "continual",
    num_examples: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    shuffle: bool = True,
    dtype: torch.dtype | None = None,
    setting_options: Mapping[str, float | int | str] | None = None,
    order: str = "default",
) -> Stream:
    """A stream over arrays.

    Args:
        images: ``(N, H, W, 3)`` or ``(N, H, W, 1)`` uint8; or several such arrays by the name of
            their domain, over the same ``N`` images.
        labels: ``(N,)`` integers.
        corruptions: Corrupt a single array by our engine, a domain each; ``None`` takes the arrays
            as they are.
        severity: Severity or severities of ``corruptions``.
        num_classes: Number of classes; the largest label plus one by default.
        name: Name of the stream in results.
        setting: A name of ``streams.list_settings()``.
        num_examples: First images that take part; all by default.
        batch_size: Samples a step.
        seed: Seed of every permutation.
        shuffle: Whether images are permuted inside a domain.
        dtype: Floating type of the images, float32 by default.
        setting_options: Options of the setting; see ``streams.settings.options``.
        order: Order of the domains, a name of ``streams.domain_orders.ORDERS``; as they are given
            by default.

    Raises:
        StreamError: For a wrong shape, type, label or length.
    """
    targets = np.asarray(labels)
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer) or not len(targets):
        raise StreamError(f"labels must be (N,) integers, got {targets.dtype} {targets.shape}")
    targets = targets.astype(np.int64)
    classes = int(targets.max()) + 1 if num_classes is None else num_classes
    options = {
        "setting": setting,
        "num_examples": num_examples,
        "batch_size": batch_size,
        "seed": seed,
        "shuffle": shuffle,
        "dtype": dtype,
        "setting_options": setting_options,
    }
    if corruptions is not None:
        if isinstance(images, Mapping):
            raise StreamError("give either one array and corruptions, or an array per domain")
        pixels = check_images(images, len(targets), name)
        clean = in_memory(pixels, targets, name=name, num_classes=classes)
        chosen = choose_domains(setting, corruptions, severity, order)
        return plan_stream(name, GeneratedSource(clean=clean), chosen, **options)  # type: ignore[arg-type]
    given = images if isinstance(images, Mapping) else {"images": images}
    if not given:
        raise StreamError("no images are given: name at least one domain and its array")
    arrays = {key: check_images(value, len(targets), key) for key, value in given.items()}
    source = ArraySource(name=name, arrays=arrays, labels=targets, num_classes=classes)
    domains = [Domain(name=key, corruption=key, severity=0) for key in arrange(list(arrays), order)]
    return plan_stream(name, source, domains, **options)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """Arrays as they are, one a domain."""

    name: str
    arrays: Mapping[str, NDArray[np.uint8]]
    labels: Ints
    num_classes: int

    def __post_init__(self) -> None:
        check_labels(self.labels, self.num_classes, self.name)

    @property
    def provenance(self) -> Provenance:
        """The caller's arrays."""
        return Provenance(kind="arrays", detail={"digest": self.digest[:16]})

    @cached_property
    def digest(self) -> str:
        """Hash of all arrays."""
        return digest_arrays(self.labels, *self.arrays.values())

    def check(self, domain: Domain) -> None:
        """Raise ``StreamError`` for a domain without an array."""
        if domain.corruption not in self.arrays:
            raise StreamError(
                f"{self.name} has no domain {domain.name!r}; it has {', '.join(self.arrays)}"
            )

    def images(self, positions: Ints, domain: Domain) -> Tensor:
        """Images ``(B, 3, H, W)`` uint8."""
        import torch

        part = self.arrays[domain.corruption][positions]
        return torch.from_numpy(part).permute(0, 3, 1, 2).contiguous()


def check_images(images: ArrayLike, count: int | None, where: str) -> NDArray[np.uint8]:
    """Images as ``(N, H, W, 3)`` uint8; one channel is repeated.

    Raises:
        StreamError: For another type, rank, channel count or length.
    """
    try:
        array = np.asanyarray(images)
    except ValueError:  # rows of different lengths
        raise StreamError(
            f"{where}: images must be uint8 (N, H, W, 3), got no regular array"
        ) from None
    if array.dtype != np.uint8 or array.ndim != 4:
        raise StreamError(
            f"{where}: images must be uint8 (N, H, W, 3), got {array.dtype} {array.shape}"
        )
    if array.shape[3] not in (1, 3):
        raise StreamError(
            f"{where}: images must have 1 or 3 channels last, got {array.shape[3]} "
            f"in {array.shape}; transpose (N, C, H, W) arrays first"
        )
    if count is not None and len(array) != count:
        raise StreamError(f"{where}: {len(array)} images but {count} labels")
    return np.repeat(array, 3, axis=3) if array.shape[3] == 1 else array
