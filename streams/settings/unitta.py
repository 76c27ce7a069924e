"""A Markov chain over domains and classes, each correlated or imbalanced at will (UniTTA, 2024).

UniTTA: Unified Benchmark and Versatile Framework Towards Realistic Test-Time Adaptation, 2024,
arXiv:2407.20080. Its 24 streams are class_stay 0 or .95, class_imbalance 1 or 10, domain_stay 0,
.85 or 1, domain_imbalance 1 or 5; ``order="rotta"``.
"""

from __future__ import annotations

import numpy as np

from streams import order, order_labels, order_markov
from streams.errors import StreamError
from streams.options import Option
from streams.order_markov import Chain
from streams.settings import Request
from streams.types import Ints

OPTIONS: dict[str, tuple[Option, str]] = {
    "class_stay": (0.95, "probability that a class follows itself; 0 is independent draws"),
    "class_imbalance": (1.0, "share of the first class over that of the last"),
    "domain_stay": (0.85, "the same of domains; 1 is one domain after another"),
    "domain_imbalance": (1.0, "share of the first domain over that of the last"),
    "cap": (1000, "images of a class in a domain at most; 0 is all"),
    "empty": ("skip", "a state without images is passed over (skip) or ends the stream (stop)"),
}


def plan(request: Request) -> order.Plan:
    """A walk of the chain that takes each image once; batches cross borders.

    Raises:
        StreamError: For an option out of range.
    """
    sizes = np.bincount(request.labels[request.positions])
    sizes = sizes[sizes > 0]
    domain_chain = _chain(request, "domain", len(request.domains))
    class_chain = _chain(request, "class", len(sizes))
    stop = request.choice("empty", ("skip", "stop")) == "stop"
    rows = [
        order.domain_order(d, request.positions, seed=request.seed, shuffle=request.shuffle)
        for d in request.domains
    ]
    members = np.stack([order_labels.by_label(row, request.labels) for row in rows])
    stock = _stock(request, sizes, domain_chain, class_chain)
    generator = order.rng(request.seed, "unitta")
    if request.options["domain_stay"] == 1:
        alone = Chain(weights=np.ones(1), keep=1.0)
        parts = [
            order_markov.walk(row[None], alone, class_chain, stop=stop, generator=generator)[1]
            for row in stock
        ]
        numbers = np.concatenate(parts)
        ids = np.repeat(np.arange(len(stock)), [len(part) for part in parts])
    else:
        ids, numbers = order_markov.walk(
            stock, domain_chain, class_chain, stop=stop, generator=generator
        )
    return order.Plan(
        domains=request.domains,
        positions=order_markov.take(ids, numbers, members, sizes),
        domain_ids=ids,
        offsets=order.in_batches([len(ids)], request.batch_size),
    )


def _chain(request: Request, kind: str, size: int) -> Chain:
    stay = request.number(f"{kind}_stay", 0, 1)
    if size > 1 and 0 < stay < 1 / size:
        raise StreamError(
            f"{kind}_stay={stay:g} is out of range: of {size} it is at least {1 / size:.3g}, "
            "or 0 for independent draws"
        )
    if kind == "class" and stay == 1 and size > 1:
        raise StreamError("class_stay=1 is out of range: the first class would never end")
    imbalance = request.number(f"{kind}_imbalance", 1)
    return Chain(
        weights=order_markov.tail_weights(size, imbalance), keep=order_markov.keep_of(stay, size)
    )


def _stock(request: Request, sizes: Ints, domain_chain: Chain, class_chain: Chain) -> Ints:
    """Images of each state ``(D, K)``: those there are, or the state's share, one at least."""
    cap = int(request.number("cap", 0))
    most = min(cap, int(sizes.max())) if cap else int(sizes.max())
    shares = np.outer(
        domain_chain.weights / domain_chain.weights.max(),
        class_chain.weights / class_chain.weights.max(),
    )
    # Just below a whole number counts as that number: a share of 1 / 10 rounds either way.
    wanted = np.maximum(np.floor(most * shares + 1e-9), 1).astype(np.int64)
    return np.minimum(wanted, sizes)
