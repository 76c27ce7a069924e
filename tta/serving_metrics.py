"""What a server tells Prometheus and OpenTelemetry (``pip install 'tta-bench[serve]'``).

Numbers are read from ``server.stats()`` when a monitor asks; only the latency of steps is pushed, a
value a step. A package is imported when its function is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tta.errors import AdapterError
from tta.serving import Server, Step

# Key of ``Server.stats`` -> meaning; ``counter``s only grow, the others go up and down.
COUNTERS = {
    "requests": "requests answered",
    "steps": "steps committed",
    "failed": "steps that raised and were undone",
    "refused": "updates refused by the method (a gradient that is not finite)",
    "dropped": "batches refused because the queue was full",
    "labels": "labels used",
    "adapted_right": "labelled images that the adapted model had right",
    "source_right": "labelled images that the source model had right",
}
GAUGES = {
    "version": "last commit",
    "queue": "batches that wait",
    "entropy": "mean entropy of the last step's answers, nats",
    "drift": "distance from the source weights, relative to their norm",
    "serving_adapted": "1 where the adapted model is served, 0 where the source model is",
    "evidence": "wealth of the bet on the model that is not served",
    "temperature": "temperature of the served probabilities",
}
LATENCY = "wall-clock time of a step and its commit, seconds"
REPORT = "scalar of the method's last report"


def export_prometheus(server: Server, registry: Any = None) -> None:
    """Register a server's metrics: ``tta_steps_total``, ``tta_drift``, ``tta_step_seconds``, ….

    Args:
        server: Its stats are read at each scrape.
        registry: A ``prometheus_client.CollectorRegistry``; the global one if not given.

    Raises:
        AdapterError: If ``prometheus-client`` is not installed.
    """
    try:
        from prometheus_client import REGISTRY, Histogram
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    except ImportError as error:
        raise _absent("prometheus-client") from error

    class Collector:
        def collect(self) -> Iterable[Any]:
            stats = server.stats()
            for key, meaning in COUNTERS.items():
                yield CounterMetricFamily(f"tta_{key}", meaning, value=stats[key])
            for key, meaning in GAUGES.items():
                if key in stats:
                    yield GaugeMetricFamily(f"tta_{key}", meaning, value=stats[key])
            family = GaugeMetricFamily("tta_report", REPORT, labels=["key"])
            for key, value in reported(stats).items():
                family.add_metric([key], value)
            yield family

    registry = REGISTRY if registry is None else registry
    seconds = Histogram("tta_step_seconds", LATENCY, registry=registry)
    registry.register(Collector())
    server.listeners.append(lambda step: seconds.observe(step.seconds))


def export_opentelemetry(server: Server, meter: Any = None) -> None:
    """Create a server's instruments: ``tta.steps``, ``tta.drift``, ``tta.step.seconds``, ….

    Args:
        server: Its stats are read at each collection.
        meter: An ``opentelemetry.metrics.Meter``; one of the global provider if not given.

    Raises:
        AdapterError: If ``opentelemetry-api`` is not installed.
    """
    try:
        from opentelemetry import metrics
    except ImportError as error:
        raise _absent("opentelemetry-api") from error

    meter = metrics.get_meter("tta") if meter is None else meter

    def read(key: str) -> Any:
        def callback(options: Any) -> Iterable[Any]:
            stats = server.stats()
            return [metrics.Observation(stats[key])] if key in stats else []

        return callback

    def report(options: Any) -> Iterable[Any]:
        return [
            metrics.Observation(value, {"key": key})
            for key, value in reported(server.stats()).items()
        ]

    for key, meaning in COUNTERS.items():
        meter.create_observable_counter(f"tta.{key}", [read(key)], description=meaning)
    for key, meaning in GAUGES.items():
        meter.create_observable_gauge(f"tta.{key}", [read(key)], description=meaning)
    meter.create_observable_gauge("tta.report", [report], description=REPORT)
    seconds = meter.create_histogram("tta.step.seconds", unit="s", description=LATENCY)

    def observe(step: Step) -> None:
        seconds.record(step.seconds)

    server.listeners.append(observe)


def reported(stats: dict[str, float]) -> dict[str, float]:
    """The part of the stats that is the method's own report."""
    return {k.removeprefix("report_"): v for k, v in stats.items() if k.startswith("report_")}


def _absent(package: str) -> AdapterError:
    return AdapterError(f"{package} is not installed: pip install 'tta-bench[serve]'")
