"""Orders of the 15 standard corruptions in the literature, as data."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from streams.corruptions.names import CORRUPTIONS
from streams.errors import StreamError

_CODES = dict(zip("GSIDLMZNRFBCEPJ", CORRUPTIONS, strict=True))

# CoTTA's ten orders (Continual Test-Time Domain Adaptation, 2022, arXiv:2203.13591).
_COTTA = (
    "BPGMZLIJDESRNFC",
    "JSZRCFDEGBLIPNM",
    "CDGSNRLZEJPBIMF",
    "SFLPNEBIDRCGMJZ",
    "PLZNFIBMRJGSCDE",
    "MNFSDCZBRELGPJI",
    "RIJCZLPNDMBESFG",
    "LZIFNJGRSBCMPDE",
    "DMZSGLJFCPRNBEI",
    "CGDZRLJFPESINMB",
)

ORDERS: dict[str, tuple[str, ...]] = {
    "default": CORRUPTIONS,
    # Robust Test-Time Adaptation in Dynamic Scenarios (RoTTA), 2023, arXiv:2303.13899.
    "rotta": tuple(_CODES[code] for code in _COTTA[5]),
    **{f"cotta-{n}": tuple(_CODES[code] for code in codes) for n, codes in enumerate(_COTTA)},
}
"""``default`` (Tent, EATA, SAR), ``rotta`` (RoTTA, TRIBE, PeTTA, UniTTA), ``cotta-0`` to ``-9``."""


def arrange(names: Sequence[str], order: str = "default") -> list[str]:
    """Names in the named order; ``default`` leaves them as they are given.

    Raises:
        StreamError: For an unknown order, with the nearest name, or a name that it does not place.
    """
    if str(order) not in ORDERS:
        near = difflib.get_close_matches(str(order), ORDERS, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise StreamError(f"unknown order {order!r}{hint}; known: {', '.join(ORDERS)}")
    if order == "default":
        return list(names)
    places = {name: place for place, name in enumerate(ORDERS[order])}
    if strangers := [name for name in names if name not in places]:
        raise StreamError(
            f"order {order!r} has no place for {strangers[0]!r}: leave it out, or give "
            "order='default' and the corruptions in your own order"
        )
    return sorted(names, key=places.__getitem__)
