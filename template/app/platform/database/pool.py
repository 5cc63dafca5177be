"""The connection pool of a process, and its metrics."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import AsyncAdaptedQueuePool, PoolProxiedConnection
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from app.platform.database.errors import ConnectionPoolEmpty, DatabaseUnavailable

pool_timeouts = Counter(
    "database_pool_timeouts_total", "Waits for a connection of the pool that ended without one"
)


class CountingPool(AsyncAdaptedQueuePool):
    """A connection pool that counts the waits for a connection, and those that ended without one."""

    waiting = 0

    @property
    def limit(self) -> int:
        """DATABASE_POOL_SIZE and DATABASE_MAX_OVERFLOW together."""
        return self.size() + self._max_overflow

    def connect(self) -> PoolProxiedConnection:
        self.waiting += 1
        try:
            return super().connect()
        except PoolTimeout as error:
            pool_timeouts.inc()
            raise ConnectionPoolEmpty(
                f"all {self.checkedout()} connections of the pool are in use"
                " (DATABASE_POOL_SIZE, DATABASE_MAX_OVERFLOW)"
            ) from error
        except InvalidRequestError as error:  # the replaced connection was closed, too
            raise DatabaseUnavailable("PostgreSQL closes each new connection at once") from error
        finally:
            self.waiting -= 1


class PoolGauges(Collector):
    """The state of the open pools, read when it is asked for."""

    def __init__(self) -> None:
        self._engines: list[AsyncEngine] = []

    @contextmanager
    def exporting(self, engine: AsyncEngine) -> Iterator[None]:
        """Export the pool of `engine` during the block."""
        self._engines.append(engine)
        try:
            yield
        finally:
            self._engines.remove(engine)

    def collect(self) -> Iterator[Metric]:
        pools = [pool for e in self._engines if isinstance(pool := e.pool, CountingPool)]
        overflow = sum(max(0, pool.overflow()) for pool in pools)
        for name, documentation, value in (
            ("in_use", "Connections in use", sum(pool.checkedout() for pool in pools)),
            ("idle", "Open connections that nobody uses", sum(pool.checkedin() for pool in pools)),
            ("overflow", "Open connections beyond DATABASE_POOL_SIZE", overflow),
            ("waiting", "Waits for a connection", sum(pool.waiting for pool in pools)),
            ("limit", "Connections that may be open", sum(pool.limit for pool in pools)),
        ):
            family = GaugeMetricFamily(f"database_pool_{name}", documentation)
            if pools:
                family.add_metric([], value)
            yield family


pool_gauges = PoolGauges()
REGISTRY.register(pool_gauges)
