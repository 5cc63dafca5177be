"""The alerts on the lag of the read side fire although the process that they watch is dead."""

import asyncio
from pathlib import Path

from drills.alerts import firing, scrape
from drills.bench import eventually
from drills.conftest import MakeBench

OF_READ_SIDE = {"ProjectionLate", "ProjectionLagUnknown"}
HOUR_SECONDS = 3600


async def test_read_side_without_worker_and_without_api(
    bench_of: MakeBench, tmp_path: Path
) -> None:
    """No worker runs, an event waits; then the API, which measured that, is killed."""
    bench = await bench_of("", topics=False)
    await asyncio.to_thread(bench.app, "topics", "create")
    api = bench.api()
    await api.is_ready()

    async def of_read_side() -> set[str]:
        now = await scrape([api])
        return OF_READ_SIDE & await firing(now, now, tmp_path)

    await eventually(of_read_side, lambda found: not found, 60, what="no alert while nothing waits")
    await bench.send_old(f"{bench.settings.kafka_client_id}.user.created", HOUR_SECONDS)
    await eventually(
        of_read_side, lambda found: found == {"ProjectionLate"}, 60, what="the lag alert fires"
    )
    api.kill()
    await eventually(
        of_read_side, lambda found: found == {"ProjectionLagUnknown"}, 60, what="the lag is absent"
    )
