"""The application: what a process of the service consists of is constructed here, and only here."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from fastapi import Depends, FastAPI

from app import DESCRIPTION, PROJECT_NAME
from app.platform import health
from app.platform.config import EnvSettings, load
from app.platform.database.engine import Database
from app.platform.database.migrations import SchemaCheck
from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import EventRegistry
from app.platform.http import problems
from app.platform.http.boundary import RequestBoundary
from app.platform.http.dependencies import refuse_unknown_query
from app.platform.http.limits import BodyLimits
from app.platform.http.methods import HeadAsGet
from app.platform.kafka.consumers import consuming
from app.platform.kafka.inbox import inbox_retention
from app.platform.kafka.lag import GroupLagMeter
from app.platform.kafka.producer import KafkaProducer, Producer
from app.platform.kafka.settings import client_options
from app.platform.runtime import Configuration, Resources, Runtime
from app.platform.service import Role, Service
from app.platform.tracing import TracingMiddleware


def create_app(
    service: Service,
    roles: Collection[Role],
    configuration: Configuration | None = None,
    producer: Producer | None = None,
) -> FastAPI:
    """The ASGI application of a process of `service` with `roles`.

    `configuration` is read from the environment unless given; `producer` takes the place of the
    one that talks to Kafka. Raises ConfigurationError, for settings of modules and files of
    certificates, too, so that it is told before anything starts.
    """
    chosen = configuration or Configuration.from_environment()
    client_options(chosen.kafka)  # reads the files that it names
    settings = {kind: load(kind) for kind in service.settings}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(service, roles, chosen, producer, settings) as runtime:
            app.state.runtime = runtime
            yield

    app = FastAPI(title=PROJECT_NAME, description=DESCRIPTION, lifespan=lifespan)
    problems.install(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestBoundary)
    app.add_middleware(BodyLimits, settings=chosen.http)
    app.add_middleware(TracingMiddleware)  # the last one added is the outermost
    app.include_router(health.router)
    if Role.API in roles:
        for router in service.routers:
            app.include_router(router, dependencies=[Depends(refuse_unknown_query)])
    return app


@asynccontextmanager
async def running(
    service: Service,
    roles: Collection[Role],
    configuration: Configuration,
    producer: Producer | None = None,
    settings: Mapping[type[EnvSettings], EnvSettings] | None = None,
) -> AsyncIterator[Runtime]:
    """Everything that a process with `roles` runs, from the first connection to the last.

    `settings` of components are read from the environment unless given.
    """
    if settings is None:
        settings = {kind: load(kind) for kind in service.settings}
    async with AsyncExitStack() as stack:
        resources = await _resources(stack, service, roles, configuration, producer)
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
        for lifespan in [lag_metering, *service.lifespans(roles)]:
            await stack.enter_async_context(lifespan(runtime))
        if Role.WORKER in roles:  # last: what handlers use is there before the first message
            await stack.enter_async_context(consumers(runtime))
        yield runtime


async def _resources(
    stack: AsyncExitStack,
    service: Service,
    roles: Collection[Role],
    configuration: Configuration,
    producer: Producer | None,
) -> Resources:
    checks = health.Health()
    database = Database(configuration.database)
    stack.push_async_callback(database.close)
    if producer is None:
        kafka = KafkaProducer(configuration.kafka)
        producer = await stack.enter_async_context(kafka.running())
    sends = not service.publishing.senders.isdisjoint(roles)
    checks.add_ready("database", database.ping)
    checks.add_ready("schema", SchemaCheck(database.probe).check)
    checks.add_ready("producer", producer.ping, needed=sends)
    checks.add_ready("topics", producer.check_topics)
    registry = EventRegistry(configuration.service.service_name, service.events)
    return Resources(configuration, checks, database, producer, registry)


@asynccontextmanager
async def consumers(runtime: Runtime) -> AsyncIterator[None]:
    """The lifespan of the service's consumers, and of the upkeep of their inbox."""
    settings = runtime.configuration.kafka
    keep = timedelta(hours=settings.inbox_retention_hours)
    async with (
        inbox_retention(runtime.database.sessions, keep),
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
async def lag_metering(runtime: Runtime) -> AsyncIterator[None]:
    """The lifespan of the meter that shows how far workers of other processes are behind.

    A worker measures its own partitions, in the same series.
    """
    if Role.WORKER in runtime.roles:
        yield
        return
    meter = GroupLagMeter(
        runtime.configuration.kafka, runtime.registry, runtime.service.subscriptions
    )
    async with meter.measuring():
        yield
