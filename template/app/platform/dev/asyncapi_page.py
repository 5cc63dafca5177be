"""The page `/asyncapi` of `app dev`: the service's events, shown by the package asyncapi-viewer."""

from html import escape
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from app.platform.config import Settings, load
from app.platform.dev.errors import import_development
from app.platform.kafka.asyncapi import document
from app.platform.kafka.settings import KafkaSettings
from app.platform.runtime import Context
from app.platform.service import Service

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="docs/assets/favicon-32x32.png">
<script src="asyncapi/assets/asyncapi-viewer.iife.js" defer></script>
<style>body {{ margin: 0 auto; padding: 1rem; max-width: 80rem; font-family: sans-serif }}</style>
</head>
<body>
<p><a href="docs">HTTP API</a></p>
<asyncapi-viewer src="asyncapi.json" sidebar></asyncapi-viewer>
</body>
</html>
"""
_LINK = "[Events that the service sends and receives](asyncapi)"


def install(app: FastAPI, service: Service) -> None:
    """Serve the page, and link it from `/docs`. Raises DevelopmentDependencyMissing."""
    import_development("asyncapi_viewer", "asyncapi-viewer")
    assets = StaticFiles(packages=[("asyncapi_viewer", "static")])
    context = Context.of(service, load(Settings).service_name, load(KafkaSettings))
    info = {"title": app.title, "version": app.version, "description": app.description}
    app.description = f"{app.description}\n\n{_LINK}"

    @app.get("/asyncapi", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(_PAGE.format(title=escape(f"{app.title} - AsyncAPI")))

    @app.get("/asyncapi.json", include_in_schema=False)
    async def specification() -> dict[str, Any]:
        return document(info, context.registry, context.subscriptions, context.kafka)

    @app.get("/asyncapi/assets/{name}", include_in_schema=False)
    async def asset(name: str, request: Request) -> Response:
        return await assets.get_response(name, request.scope)
