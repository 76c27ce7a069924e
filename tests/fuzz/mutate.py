"""Small seeded changes of bytes and of text."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1)
_WORDS = (
    *("0", "-1", "1e999", "nan", "inf", "99999999999999999999", "null", "true", "[]", "{}", '""'),
    *("[[[[", "../../x", "/etc/passwd", "\0", "é", "\ud7ff", "'", '"', "\\", "#", "=", ",", "\n"),
)


def mutated(data: bytes, others: Sequence[bytes], draw: random.Random) -> bytes:
    """A few changes in a row; ``others`` are inputs of the same kind to take pieces from."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        data = draw.choice(_CHANGES)(data, draw)
    if draw.random() < 0.05:
        other = draw.choice(others)
        data = data[: draw.randint(0, len(data))] + other[draw.randint(0, len(other)) :]
    return data


def _flip(data: bytes, draw: random.Random) -> bytes:
    if not data:
        return data
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def _set(data: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randint(0, len(data))]


def _drop(data: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + data[at + draw.choice((1, 2, 4, 16, 100)) :]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    at, size = draw.randint(0, len(data)), draw.choice((1, 4, 16, 100))
    return data[: at + size] + data[at : at + size] * draw.choice((1, 2, 50)) + data[at + size :]


def _integer(data: bytes, draw: random.Random) -> bytes:
    size = draw.choice((1, 2, 4, 8))
    value = draw.choice(_INTEGERS) % (1 << 8 * size)
    at = draw.randint(0, len(data))
    return data[:at] + value.to_bytes(size, draw.choice(("little", "big"))) + data[at + size :]


def _word(data: bytes, draw: random.Random) -> bytes:
    """A value or a piece of text becomes one that is wrong."""
    found = list(re.finditer(rb"-?[0-9.]+|\"[^\"]*\"|[A-Za-z_-]{3,}", data))
    if not found:
        return _set(data, draw)
    place = draw.choice(found)
    word = draw.choice(_WORDS).encode("utf-8", "replace")
    return data[: place.start()] + word + data[place.end() :]


def _swap(data: bytes, draw: random.Random) -> bytes:
    """One word takes the place of another of the same input."""
    found = list(re.finditer(rb"-?[0-9.]+|\"[^\"]*\"|[A-Za-z_-]{3,}", data))
    if len(found) < 2:
        return _flip(data, draw)
    one, other = draw.sample(found, 2)
    return data[: one.start()] + other.group() + data[one.end() :]


_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _set, _cut, _drop, _repeat, _integer, _integer, _word, _word, _swap),
)
