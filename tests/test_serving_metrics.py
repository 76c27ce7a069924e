"""What a monitor sees of a server."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

import tta
from tta.errors import AdapterError
from tta.serving import Server
from tta.serving_metrics import COUNTERS, GAUGES, export_opentelemetry, export_prometheus


def images(key: int) -> Tensor:
    return torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(key))


@pytest.fixture
def server():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    return Server(tta.wrap(model, "tent", lr=1e-2), source=model)


def use(server: Server) -> None:
    server.adapt(images(0))
    server.adapt(images(1))
    answer = server.predict(images(2))
    server.feedback(answer.index, 1)
    with pytest.raises(AdapterError):
        server.adapt(torch.zeros(1, dtype=torch.int64))


def test_prometheus(server):
    client = pytest.importorskip("prometheus_client", reason="needs the extra 'serve'")
    registry = client.CollectorRegistry()
    export_prometheus(server, registry)
    assert registry.get_sample_value("tta_steps_total") == 0
    use(server)
    stats = server.stats()
    for key in COUNTERS:
        assert registry.get_sample_value(f"tta_{key}_total") == stats[key], key
    for key in GAUGES:
        assert registry.get_sample_value(f"tta_{key}") == stats[key], key
    assert registry.get_sample_value("tta_step_seconds_count") == 2
    total = registry.get_sample_value("tta_step_seconds_sum")
    assert total == pytest.approx(stats["step_seconds"])
    loss = registry.get_sample_value("tta_report", {"key": "loss"})
    assert loss == stats["report_loss"]
    assert (stats["steps"], stats["failed"], stats["labels"]) == (2, 1, 1)
    assert b"tta_drift" in client.generate_latest(registry)


def test_opentelemetry(server):
    pytest.importorskip("opentelemetry.sdk.metrics", reason="needs opentelemetry-sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    export_opentelemetry(server, MeterProvider([reader]).get_meter("test"))
    use(server)
    data = reader.get_metrics_data()
    assert data is not None
    [scope] = data.resource_metrics[0].scope_metrics
    points = {metric.name: list(metric.data.data_points) for metric in scope.metrics}
    stats = server.stats()
    for key in (*COUNTERS, *GAUGES):
        assert [point.value for point in points[f"tta.{key}"]] == [stats[key]], key
    assert points["tta.step.seconds"][0].count == 2
    values = {point.attributes["key"]: point.value for point in points["tta.report"]}
    assert values["loss"] == stats["report_loss"]


@pytest.mark.parametrize(
    ("export", "package"),
    [(export_prometheus, "prometheus_client"), (export_opentelemetry, "opentelemetry")],
)
def test_a_package_that_is_missing(server, monkeypatch, export, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(AdapterError, match=r"not installed: pip install 'tta-bench\[serve\]'"):
        export(server)
    assert server.listeners == []
