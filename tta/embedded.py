"""The models that ship inside the package, as data: read without torch.

Every entry says where its weights come from: the recipe, the seed, the command that trains them
again and the error measured on the clean test images.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EmbeddedBackbone:
    """One shipped model.

    Attributes:
        name: Name on the command line and in results.
        file: File in ``tta/weights`` that holds the weights.
        norm: Normalisation layers: ``"batchnorm"`` or ``"groupnorm"``.
        widths: Channels of the four stages.
        num_classes: Number of classes.
        input_size: Height and width in pixels.
        mean: Channel means that the model subtracts, in [0, 1].
        std: Channel standard deviations that the model divides by.
        channels_last: Whether its convolutions run faster in that memory layout on CPUs.
        source_error_pct: Error on the 10,000 clean test images, in percent, as measured.
        data: Training images.
        recipe: How it was trained, in words.
        epochs: Passes over the training images.
        lr: Peak learning rate.
        seed: Seed of the initialisation, the order and the augmentation.
        command: Command that trains it again.
    """

    name: str
    file: str
    norm: str
    widths: tuple[int, ...]
    num_classes: int
    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels_last: bool
    source_error_pct: float
    data: str
    recipe: str
    epochs: int
    lr: float
    seed: int
    command: str


_DATA = "Fashion-MNIST, 60,000 training images, padded with zeros from 28x28 to 32x32"


def _fashion(
    name: str, *, norm: str, channels_last: bool, lr: float, epochs: int, error_pct: float
) -> EmbeddedBackbone:
    return EmbeddedBackbone(
        name=name,
        file=f"{name.replace('-', '_')}.safetensors",
        norm=norm,
        widths=(24, 48, 96, 128),
        num_classes=10,
        input_size=(32, 32),
        # Mean and deviation of the 28x28 training pixels, the same for the three equal channels.
        mean=(0.2860, 0.2860, 0.2860),
        std=(0.3530, 0.3530, 0.3530),
        channels_last=channels_last,
        source_error_pct=error_pct,
        data=_DATA,
        recipe=(
            f"SGD with Nesterov momentum 0.9, one-cycle peak {lr}, weight decay 5e-4, batch 128, "
            f"{epochs} epochs, random flip and shift of up to 2 pixels, one CPU thread"
        ),
        epochs=epochs,
        lr=lr,
        seed=0,
        command=f"tta-bench pretrain {name} --out {name}.safetensors",
    )


EMBEDDED: dict[str, EmbeddedBackbone] = {
    entry.name: entry
    for entry in (
        _fashion(
            "fashion-resnet",
            norm="batchnorm",
            channels_last=True,
            lr=0.2,
            epochs=12,
            error_pct=7.05,
        ),
        _fashion(
            "fashion-resnet-gn",
            norm="groupnorm",
            channels_last=True,
            lr=0.1,
            epochs=12,
            error_pct=7.87,
        ),
    )
}


def names() -> list[str]:
    """Names of the shipped models, sorted."""
    return sorted(EMBEDDED)
