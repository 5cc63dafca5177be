"""Metrics as Prometheus scrapes them."""

import asyncio
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest

from app.platform.http.health_routes import router
from app.platform.kafka import metrics as kafka_metrics
from app.platform.metrics import describe_process, measuring_event_loop
from app.platform.service import installed_version


async def test_metrics_are_served_in_the_format_of_prometheus() -> None:
    kafka_metrics.deliveries.add("shop.meter.read", 0.01)
    app = FastAPI()
    app.include_router(router)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as http:
        answer = await http.get("/metrics")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'kafka_messages_sent_total{topic="shop.meter.read"}' in answer.text
    assert "# TYPE kafka_message_latency_seconds histogram" in answer.text


def test_deliveries_equal_a_counter_and_a_histogram() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    deliveries = kafka_metrics.Deliveries()
    ours.register(deliveries)
    sent = Counter(
        "kafka_messages_sent_total", "Messages acknowledged by Kafka", ["topic"], registry=theirs
    )
    latency = Histogram(
        "kafka_message_latency_seconds", "From send to acknowledgement", ["topic"], registry=theirs
    )
    for topic, seconds, messages in [("a", 0.001, 3), ("b", 0.005, 1), ("a", 7.5, 1), ("a", 60, 2)]:
        deliveries.add(topic, seconds, messages)
        for _ in range(messages):
            sent.labels(topic).inc()
            latency.labels(topic).observe(seconds)

    expected = generate_latest(theirs).decode().splitlines()
    assert generate_latest(ours).decode().splitlines() == [
        line for line in expected if "_created" not in line
    ]


def test_no_gauge_has_a_value_before_its_measurement() -> None:
    """A gauge that is 0 without a measurement would keep alerts silent."""
    listing = (
        "from prometheus_client import REGISTRY\n"
        "from app.wiring import service\n"
        "from app.platform.http.app import create_app\n"
        "assert service and create_app\n"
        "for metric in REGISTRY.collect():\n"
        "    if metric.type == 'gauge' and not metric.name.startswith(('python_', 'process_')):\n"
        "        print(metric.name, *(sample.name for sample in metric.samples))\n"
    )
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    gauges = [line.split() for line in done.stdout.splitlines()]
    assert "kafka_consumer_lag" in {name for name, *_ in gauges}
    assert [name for name, *samples in gauges if samples] == []


async def test_a_blocked_event_loop_is_measured() -> None:
    def total() -> float:
        return REGISTRY.get_sample_value("event_loop_lag_seconds_sum") or 0

    before = total()
    async with measuring_event_loop():
        await asyncio.sleep(0)  # the task has to begin first
        time.sleep(1)  # the fault itself
        async with asyncio.timeout(30):
            while total() == before:
                await asyncio.sleep(0.01)
    assert total() - before > 0.5


def test_a_process_says_what_it_is() -> None:
    describe_process("shop", "1.2.3", ["worker", "api"])
    (line,) = [
        line for line in generate_latest().decode().splitlines() if line.startswith("target_info{")
    ]
    assert line.endswith("} 1.0")
    assert 'service_name="shop"' in line
    assert 'service_roles="api,worker"' in line
    assert 'service_version="1.2.3"' in line


def test_the_version_is_that_of_the_installed_service() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert installed_version() == project["version"]
