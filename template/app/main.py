"""The application: what a process of the service consists of is constructed here, and only here."""

from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import Depends, FastAPI

from app import DESCRIPTION, PROJECT_NAME, errors, health, wiring
from app.boundary import RequestBoundary
from app.config import load
from app.database import Database
from app.dependencies import refuse_unknown_query
from app.kafka.event import EventRegistry
from app.kafka.producer import KafkaProducer, Producer
from app.kafka.settings import client_options
from app.limits import BodyLimits
from app.methods import HeadAsGet
from app.migrate import Schema
from app.runtime import Configuration, Resources, Role, Runtime
from app.tracing import TracingMiddleware
from app.unit_of_work import UnitsOfWork


def create_app(
    roles: Collection[Role],
    configuration: Configuration | None = None,
    producer: Producer | None = None,
) -> FastAPI:
    """The ASGI application of a process with `roles`.

    `configuration` is read from the environment unless given; `producer` takes the place of the
    one that talks to Kafka. Raises ConfigurationError, for settings of modules and files of
    certificates, too, so that it is told before anything starts.
    """
    chosen = configuration or Configuration.from_environment()
    client_options(chosen.kafka)  # reads the files that it names
    for settings in wiring.SETTINGS:
        load(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(roles, chosen, producer) as runtime:
            app.state.runtime = runtime
            yield

    app = FastAPI(title=PROJECT_NAME, description=DESCRIPTION, lifespan=lifespan)
    errors.install(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestBoundary)
    app.add_middleware(BodyLimits, settings=chosen.http)
    app.add_middleware(TracingMiddleware)  # the last one added is the outermost
    app.include_router(health.router)
    if Role.API in roles:
        for name, made in wiring.STATE.items():
            setattr(app.state, name, made())
        for router in wiring.ROUTERS:
            app.include_router(router, dependencies=[Depends(refuse_unknown_query)])
    return app


@asynccontextmanager
async def running(
    roles: Collection[Role], configuration: Configuration, producer: Producer | None = None
) -> AsyncIterator[Runtime]:
    """Everything that a process with `roles` runs, from the first connection to the last."""
    async with AsyncExitStack() as stack:
        resources = await _resources(stack, roles, configuration, producer)
        bind = wiring.bind_publisher(
            configuration.kafka, resources.registry, resources.producer, resources.published
        )
        runtime = Runtime(
            **vars(resources),
            roles=roles,
            units=UnitsOfWork(resources.database.sessions, bind),
            subscriptions=wiring.SUBSCRIPTIONS,
        )
        for plugged_into, lifespan in wiring.LIFESPANS:
            if not plugged_into.isdisjoint(roles):
                await stack.enter_async_context(lifespan(runtime))
        yield runtime


async def _resources(
    stack: AsyncExitStack,
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
    checks.add_ready("database", database.ping)
    checks.add_ready("schema", Schema(database.probe).check)
    checks.add_ready("producer", producer.ping, needed=not wiring.SENDERS.isdisjoint(roles))
    checks.add_ready("topics", producer.check_topics)
    registry = EventRegistry(configuration.service.service_name, wiring.EVENTS)
    return Resources(configuration, checks, database, producer, registry)
