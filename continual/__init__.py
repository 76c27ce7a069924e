"""Continual strategies on the same streams; filled by the strategies that join it.

Importing this package imports nothing else.
"""

from __future__ import annotations

__all__: list[str] = []
