"""The page `/docs`: Swagger UI, without anything from another host."""

from html import escape

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html, get_swagger_ui_oauth2_redirect_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_OAUTH2_REDIRECT = "/docs/oauth2-redirect"


def install(app: FastAPI) -> None:
    """Serve the page and its assets, which are files of the package fastapi-swagger.

    Their URLs are relative, so that the page works behind a proxy that strips a prefix.
    """
    assets = StaticFiles(packages=[("fastapi_swagger", "resources")])

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=escape(app.title),
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
            oauth2_redirect_url=request.scope.get("root_path", "") + _OAUTH2_REDIRECT,
        )

    @app.get("/docs/assets/{name}", include_in_schema=False)
    async def asset(name: str, request: Request) -> Response:
        return await assets.get_response(name, request.scope)

    @app.get(_OAUTH2_REDIRECT, include_in_schema=False)
    async def oauth2_redirect() -> HTMLResponse:
        return get_swagger_ui_oauth2_redirect_html()
