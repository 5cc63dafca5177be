from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from app.health import router
from app.kafka import metrics as kafka_metrics


async def test_metrics_are_given_in_the_format_of_prometheus() -> None:
    kafka_metrics.messages_sent.labels("shop.meter.read").inc()
    app = FastAPI()
    app.include_router(router)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as http:
        answer = await http.get("/metrics")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'kafka_messages_sent_total{topic="shop.meter.read"}' in answer.text
    assert "# TYPE kafka_message_latency_seconds histogram" in answer.text
