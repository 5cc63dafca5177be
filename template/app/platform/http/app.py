"""The application: everything that a process consists of is constructed here, and only here."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from starlette.types import Lifespan

from app import DESCRIPTION, PROJECT_NAME
from app.platform import telemetry, tracing
from app.platform.config import EnvSettings, HttpSettings, load
from app.platform.database.engine import Database
from app.platform.database.migrations import SchemaCheck
from app.platform.database.pool import pool_gauges
from app.platform.database.retention import deleting_expired
from app.platform.database.statements import trace_statements
from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import EventRegistry
from app.platform.health import Health
from app.platform.http import documentation, health_routes, idempotency, problems
from app.platform.http.boundary import RequestBoundary
from app.platform.http.dependencies import reject_unknown_query
from app.platform.http.limits import BodyLimits
from app.platform.http.methods import HeadAsGet
from app.platform.http.tracing import TracingMiddleware
from app.platform.kafka import inbox
from app.platform.kafka.consumers import consuming
from app.platform.kafka.lag import GroupLagMeter
from app.platform.kafka.producer import KafkaProducer, Producer
from app.platform.kafka.settings import client_options
from app.platform.metrics import describe_process, measuring_event_loop
from app.platform.runtime import Configuration, Resources, Runtime, naming_all_wrong_settings
from app.platform.service import Role, Service, installed_version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


def create_app(
    service: Service,
    roles: Collection[Role],
    configuration: Configuration | None = None,
    producer: Producer | None = None,
    tracer_provider: "TracerProvider | None" = None,
) -> FastAPI:
    """Create the ASGI application of a process of `service` with `roles`.

    `configuration` is read from the environment unless given; `producer` replaces the Kafka client, and
    `tracer_provider` that of `OTEL_*`.
    Raises ConfigurationError before anything starts, also for settings of components and for files
    of certificates.
    """
    with naming_all_wrong_settings(service.settings):
        configuration = configuration or Configuration.from_environment()
        settings = {kind: load(kind) for kind in service.settings}
    client_options(configuration.kafka)  # reads the files of certificates
    tracer_provider = tracer_provider or telemetry.tracer_provider(
        configuration.service.service_name, configuration.telemetry
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with telemetry.exporting(tracer_provider):
            async with open_runtime(service, roles, configuration, producer, settings) as runtime:
                app.state.runtime = runtime
                yield

    app = _build_app(lifespan, configuration.http)
    app.include_router(health_routes.router)
    if Role.API in roles:
        for router in service.routers:
            app.include_router(router, dependencies=[Depends(reject_unknown_query)])
    return app


def _build_app(lifespan: Lifespan[FastAPI], limits: HttpSettings) -> FastAPI:
    """Build the application without routes of the service."""
    app = FastAPI(
        title=PROJECT_NAME,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their assets from other hosts
        redoc_url=None,
        # The server span is TracingMiddleware's, and the metrics are those of /metrics.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    problems.install(app)
    documentation.install(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestBoundary)
    app.add_middleware(BodyLimits, settings=limits)
    app.add_middleware(TracingMiddleware)  # the last one added is the outermost
    return app


@asynccontextmanager
async def open_runtime(
    service: Service,
    roles: Collection[Role],
    configuration: Configuration,
    producer: Producer | None = None,
    settings: Mapping[type[EnvSettings], EnvSettings] | None = None,
) -> AsyncIterator[Runtime]:
    """Run everything of a process with `roles` during the block, except its HTTP server.

    `settings` of components are read from the environment unless given.
    """
    if settings is None:
        settings = {kind: load(kind) for kind in service.settings}
    version = installed_version() or "unknown"
    describe_process(configuration.service.service_name, version, roles)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(measuring_event_loop())
        resources = await _open_resources(stack, service, roles, configuration, producer)
        bind = service.publishing.bind(
            configuration.kafka, resources.registry, resources.producer, resources.published
        )
        runtime = Runtime(
            **vars(resources),
            service=service,
            settings=settings,
            roles=roles,
            units=UnitOfWorkFactory(resources.database.sessions, bind),
        )
        for lifespan in [lag_lifespan, *service.lifespans(roles)]:
            await stack.enter_async_context(lifespan(runtime))
        if Role.API in roles:
            expired = deleting_expired(resources.database.sessions, idempotency.RETENTION)
            await stack.enter_async_context(expired)
        if Role.WORKER in roles:  # last, because handlers may use everything else
            await stack.enter_async_context(consumer_lifespan(runtime))
        yield runtime


async def _open_resources(
    stack: AsyncExitStack,
    service: Service,
    roles: Collection[Role],
    configuration: Configuration,
    producer: Producer | None,
) -> Resources:
    checks = Health()
    database = Database(configuration.database)
    stack.push_async_callback(database.close)
    if tracing.is_on():
        trace_statements(database.engine.sync_engine)
    stack.enter_context(pool_gauges.exporting(database.engine))
    if producer is None:
        kafka = KafkaProducer(configuration.kafka)
        producer = await stack.enter_async_context(kafka.running())
    sends = not service.publishing.senders.isdisjoint(roles)
    checks.add_readiness_check("database", database.ping)
    checks.add_readiness_check("schema", SchemaCheck(database.probe).check)
    checks.add_readiness_check("producer", producer.ping, required=sends)
    checks.add_readiness_check("topics", producer.check_topics)
    registry = EventRegistry(
        configuration.service.service_name,
        service.events,
        configuration.kafka.kafka_ce_type_prefix,
    )
    return Resources(configuration, checks, database, producer, registry)


@asynccontextmanager
async def consumer_lifespan(runtime: Runtime) -> AsyncIterator[None]:
    """Run the service's consumers, and the clean-up of their inbox."""
    settings = runtime.configuration.kafka
    keep = timedelta(hours=settings.inbox_retention_hours)
    async with (
        deleting_expired(runtime.database.sessions, inbox.retention(keep)),
        consuming(
            runtime.service.subscriptions,
            runtime.registry,
            settings,
            runtime.units,
            runtime.producer,
            runtime.health,
        ),
    ):
        yield


@asynccontextmanager
async def lag_lifespan(runtime: Runtime) -> AsyncIterator[None]:
    """Measure the lag of consumers in other processes.

    A worker measures the lag of its own partitions, in the same metric.
    """
    if Role.WORKER in runtime.roles:
        yield
        return
    meter = GroupLagMeter(
        runtime.configuration.kafka, runtime.registry, runtime.service.subscriptions
    )
    async with meter.measuring():
        yield
