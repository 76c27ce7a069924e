"""Names and version of the corruption generator: plain data, importable without torch."""

from __future__ import annotations

GENERATOR_VERSION = "1"
"""Changes whenever the pixels of any corruption change for the same seed."""

CORRUPTIONS: tuple[str, ...] = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The 15 standard corruptions in the order in which tables of results list them."""

EXTRA_CORRUPTIONS: tuple[str, ...] = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The four that the benchmark keeps aside for validation."""
