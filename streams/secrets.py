"""Keeps passwords and tokens out of what is written down: rows, specs, records, error lines."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
# https://user:password@host, also after pathlib has made one slash of two.
_LOGIN = re.compile(r"(\b[a-z][a-z0-9+.-]*:/{1,2})[^/\s@\"']+@", re.IGNORECASE)
_QUERY = re.compile(
    r"([?&](?:[\w-]*(?:token|secret|password|signature|credential)|api[_-]?key|key|sig)=)[^&\s\"']+",
    re.IGNORECASE,
)
_NAMES = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY)(_|$)", re.IGNORECASE)
# Shorter values are words such as "true" that stand in many places for other reasons.
_SHORTEST = 8


def masked(text: str) -> str:
    """The text without logins in addresses, tokens in queries, and secrets of the environment.

    A variable is a secret where its name says so (``HF_TOKEN``, ``WANDB_API_KEY``, …) and its value
    has at least 8 characters.
    """
    text = _LOGIN.sub(rf"\1{MASK}@", text)
    text = _QUERY.sub(rf"\1{MASK}", text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _NAMES.search(name):
            text = text.replace(value, MASK)
    return text


def without_secrets(value: Any) -> Any:
    """A JSON value whose texts are ``masked``; numbers stay, whatever the environment holds."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item) for item in value]
    return value
