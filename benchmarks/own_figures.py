"""Figures of this repository that any machine can make again: embedded images, shipped weights.

They stand in docs/tables.md and docs/backbones.md (a test compares). A machine on which they come
out otherwise differs in something that matters.
"""

from __future__ import annotations

from tta.published import Published

OWN = "this repository"

# Mean and deviation over seeds 0 to 2: fashion-resnet, fashion-resnet-gn.
_TABLE: dict[str, tuple[tuple[float, float] | None, tuple[float, float] | None]] = {
    "source": ((32.47, 0.00), (18.69, 0.00)),
    "norm": ((15.07, 0.10), None),
    "tent": ((14.40, 0.05), (18.00, 0.03)),
    "eta": ((14.30, 0.01), (17.98, 0.04)),
    "eata": ((14.30, 0.01), (17.98, 0.05)),
    "sar": ((15.04, 0.08), (18.36, 0.01)),
    "deyo": ((14.26, 0.05), (18.40, 0.05)),
    "roid": ((14.56, 0.10), (18.46, 0.19)),
    "come": ((14.44, 0.04), (17.71, 0.01)),
    "rpl": ((14.45, 0.04), (17.73, 0.03)),
    "zerosiam": ((14.92, 0.02), (18.28, 0.02)),
    "t3a": ((33.20, 0.02), (17.86, 0.03)),
    "lame": ((45.07, 0.30), (29.00, 0.24)),
}
_CLEAN = {"fashion-resnet": 7.05, "fashion-resnet-gn": 7.87}


def own_figures(method: str) -> tuple[Published, ...]:
    """This repository's figures of a method."""
    made = [
        Published(
            stream="fashion-mnist",
            protocol="clean",
            backbone=backbone,
            error_pct=error,
            source=OWN,
            place="docs/backbones.md, table of the shipped models",
        )
        for backbone, error in _CLEAN.items()
        if method == "source"
    ]
    for backbone, figure in zip(_CLEAN, _TABLE.get(method, ()), strict=False):
        if figure is not None:
            made.append(
                Published(
                    stream="fashion-mnist-c",
                    protocol="continual-1000",
                    backbone=backbone,
                    error_pct=figure[0],
                    std=figure[1],
                    seeds=3,
                    source=OWN,
                    place="docs/tables.md, all methods on Fashion-MNIST-C",
                )
            )
    return tuple(made)
