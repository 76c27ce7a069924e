"""Tasks out of a training and a test side: by class, by domain, in balanced parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streams.clean import CleanImages
from streams.errors import StreamError
from streams.learning_types import Samples, Task
from streams.order import rng
from streams.single import CleanSource
from streams.types import CLEAN, Domain, ImageSource, Ints

CLASS_ORDERS = ("natural", "shuffled", "1993")


@dataclass(frozen=True, kw_only=True)
class TaskSet:
    """Tasks over one training and one test side.

    Attributes:
        tasks: The tasks, in the order in which they are met.
        num_classes: Width ``K`` of the shared head.
        image_shape: ``(C, H, W)``.
        clean: Clean images behind the tests, at the tests' positions, for those who corrupt them;
            ``None`` where the tests are no clean images.
        profile: Parameter table of corruptions that suits the images.
    """

    tasks: tuple[Task, ...]
    num_classes: int
    image_shape: tuple[int, int, int]
    clean: CleanImages | None = None
    profile: str = "cifar"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A training and a test side that share no image.

    Attributes:
        train: Where the training images are.
        train_at: Positions ``(N,)`` of those that take part.
        test: Where the test images are; may be the same images, at other positions.
        test_at: Positions ``(M,)`` of those that take part.
        image_shape: ``(C, H, W)``.
        profile: As in ``TaskSet``.
    """

    train: CleanImages
    train_at: Ints
    test: CleanImages
    test_at: Ints
    image_shape: tuple[int, int, int]
    profile: str = "cifar"


def split_by_class(
    pair: Pair, *, num_tasks: int, class_order: str = "natural", seed: int
) -> TaskSet:
    """Tasks of equally many classes each; labels stay those of the source.

    Args:
        pair: The two sides.
        num_tasks: Tasks among which all classes are divided.
        class_order: A name of ``CLASS_ORDERS``.
        seed: Of the order ``shuffled``.

    Raises:
        StreamError: If the classes cannot be divided so, or for an unknown order.
    """
    count = pair.train.num_classes
    if not 1 <= num_tasks <= count or count % num_tasks:
        fits = [n for n in range(1, count + 1) if count % n == 0]
        raise StreamError(
            f"num_tasks={num_tasks}: {count} classes cannot be divided equally among them; "
            f"take one of {', '.join(map(str, fits))}"
        )
    groups = order_of_classes(count, class_order, seed).reshape(num_tasks, -1)
    both = (
        (CleanSource(clean=pair.train), pair.train_at),
        (CleanSource(clean=pair.test), pair.test_at),
    )
    tasks = []
    for number, classes in enumerate(np.sort(groups, axis=1)):
        sides = [
            of_domain(source, at[np.isin(source.labels[at], classes)], number)
            for source, at in both
        ]
        tasks.append(
            Task(
                name=f"task_{number}",
                train=sides[0],
                test=sides[1],
                classes=tuple(classes.tolist()),
            )
        )
    return TaskSet(
        tasks=tuple(tasks),
        num_classes=count,
        image_shape=pair.image_shape,
        clean=pair.test,
        profile=pair.profile,
    )


def split_by_domain(
    pair: Pair, sides: Sequence[ImageSource], domains: Sequence[Domain]
) -> tuple[Task, ...]:
    """One task a domain, with all images and all classes of both sides.

    Args:
        pair: The two sides.
        sides: Sources with the domains, over the training and over the test images of ``pair``.
        domains: The domains, in order.

    Raises:
        StreamError: For a domain that a source does not have.
    """
    train, test = sides
    for domain in domains:
        train.check(domain)
        test.check(domain)
    shared = tuple(domains)
    classes = tuple(np.unique(pair.train.labels[pair.train_at]).tolist())
    return tuple(
        Task(
            name=domain.name,
            train=of_domain(train, pair.train_at, number, shared, number),
            test=of_domain(test, pair.test_at, number, shared, number),
            classes=classes,
        )
        for number, domain in enumerate(domains)
    )


def of_domain(
    source: ImageSource,
    at: Ints,
    task: int,
    domains: tuple[Domain, ...] = (CLEAN,),
    domain_id: int = 0,
) -> Samples:
    """Samples of one task in one domain, with the source's labels."""
    return Samples(
        source=source,
        positions=at,
        labels=source.labels[at],
        tasks=np.full(len(at), task, dtype=np.int64),
        domains=domains,
        domain_ids=np.full(len(at), domain_id, dtype=np.int64),
    )


def order_of_classes(count: int, name: str, seed: int) -> Ints:
    """An order ``(K,)`` of the classes.

    ``natural`` is ascending; ``shuffled`` is drawn from ``seed``; ``1993`` is numpy's legacy
    permutation of that seed, the order of iCaRL (2017, arXiv:1611.07725) and of most papers since.

    Raises:
        StreamError: For another name.
    """
    if name not in CLASS_ORDERS:
        raise StreamError(f"class_order={name!r} is none of {', '.join(map(repr, CLASS_ORDERS))}")
    if name == "natural":
        return np.arange(count)
    if name == "shuffled":
        return rng(seed, "learning", "classes").permutation(count)
    return np.random.RandomState(1993).permutation(count).astype(np.int64)


def balanced_order(labels: Ints, seed: int, *purpose: int | str) -> Ints:
    """Places ``(N,)`` in an order of which every beginning has all classes equally often.

    Random inside each class; a class that has no more images drops out.

    Args:
        labels: Labels ``(N,)``.
        seed: With ``purpose`` the key of the draw.
        purpose: What the draw is for.
    """
    generator = rng(seed, *purpose)
    mixed = generator.permutation(len(labels))
    order = mixed[np.argsort(labels[mixed], kind="stable")]
    _, sizes = np.unique(labels, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turn = np.repeat(generator.permutation(len(sizes)), sizes)
    made: Ints = order[np.lexsort((turn, rank))]
    return made


def capped(samples: Samples, count: int, seed: int, *purpose: int | str) -> Samples:
    """At most ``count`` of the samples, class-balanced and drawn by the key; their order stays."""
    if count >= len(samples):
        return samples
    return samples.take(np.sort(balanced_order(samples.labels, seed, *purpose)[:count]))
