"""The alerts on the lag of the read side fire although the process that they watch is dead."""

import asyncio

from drills.alerts import Alert, alerts, scrape
from drills.bench import eventually
from drills.conftest import MakeBench
from drills.service import ROOT

PAGE = ROOT / "docs" / "cqrs.md"
BEHIND = Alert("max by (projection) (projection_lag_seconds) > 60")
UNKNOWN = Alert("absent(projection_lag_seconds)")
HOUR_SECONDS = 3600


async def test_read_side_without_worker_and_without_api(bench_of: MakeBench) -> None:
    """No worker runs, an event waits; then the API, which measured that, is killed."""
    assert alerts([PAGE]) == {BEHIND, UNKNOWN}
    bench = await bench_of("", topics=False)
    await asyncio.to_thread(bench.app, "topics", "create")
    api = bench.api()
    await api.is_ready()

    async def firing() -> set[Alert]:
        now = await scrape([api])
        return {alert for alert in alerts([PAGE]) if alert.fires({}, now)}

    await eventually(firing, lambda found: not found, 60, what="no alert while nothing waits")
    await bench.send_old(f"{bench.settings.kafka_client_id}.user.created", HOUR_SECONDS)
    await eventually(firing, lambda found: found == {BEHIND}, 60, what="the lag alert fires")
    api.kill()
    await eventually(firing, lambda found: found == {UNKNOWN}, 60, what="the lag is absent")
