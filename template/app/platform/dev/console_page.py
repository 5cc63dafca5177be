"""The console of `app dev`, at `/console`: it shows this process, and may act."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.responses import RedirectResponse

from app.platform.config import Settings, load
from app.platform.console.access import ConsoleSettings
from app.platform.console.app import create_console, opened
from app.platform.database.engine import DatabaseSettings
from app.platform.kafka.settings import KafkaSettings
from app.platform.runtime import Context
from app.platform.service import Service

PATH = "/console"


def install(app: FastAPI, service: Service) -> None:
    """Mount the console, and link it from `/docs`.

    `app dev` listens on loopback only, so actions are allowed unless CONSOLE_ACTIONS is set.
    """
    settings = load(ConsoleSettings)
    if "console_actions" not in settings.model_fields_set:
        settings = settings.model_copy(update={"console_actions": True})
    context = Context.of(service, load(Settings).service_name, load(KafkaSettings))
    console = create_console(service, context, load(DatabaseSettings), settings)
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def with_console(app: FastAPI) -> AsyncIterator[None]:
        async with opened(console), lifespan(app):
            yield

    @app.get(PATH, include_in_schema=False)
    async def add_slash() -> RedirectResponse:
        return RedirectResponse(f"{PATH.removeprefix('/')}/")

    app.router.lifespan_context = with_console
    app.description = f"{app.description}\n\n[Console](console/)"
    app.mount(PATH, console)
