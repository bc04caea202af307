"""`/docs` and `/redoc`: the API's reference as pages, from files of a package, so that they need no internet.
The scripts are those of `fastapi-offline`, which holds Swagger UI and ReDoc as their makers publish them."""

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse
from starlette.routing import Route

_FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
    "favicon.png": "image/png",
}
_FROM_HERE_ALONE = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline';"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src blob:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}
"""Nothing of the pages asks anybody else: ReDoc would fetch its maker's logo. And no other page shows them
in a frame of its own, where a credential is typed into them."""
_A_DAY = {"Cache-Control": "public, max-age=86400"}


def serve_reference(app: FastAPI) -> None:
    """Adds the pages. All that they load they name relative to themselves, so that a proxy may serve the
    relay under a path."""
    swagger = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Bellwire",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon.png",
    )
    redoc = get_redoc_html(
        openapi_url="openapi.json",
        title="Bellwire",
        redoc_js_url="docs/redoc.standalone.js",
        redoc_favicon_url="docs/favicon.png",
        with_google_fonts=False,
    )
    routes = [_page("/docs", swagger), _page("/redoc", redoc)]
    static = Path(str(files("fastapi_offline") / "static"))
    routes += [_file(f"/docs/{name}", static / name, kind) for name, kind in _FILES.items()]
    app.router.routes += routes


def _page(path: str, page: HTMLResponse) -> Route:
    async def answer(request: Request) -> HTMLResponse:
        del request
        return HTMLResponse(page.body, headers=_FROM_HERE_ALONE)

    return Route(path, answer, include_in_schema=False)


def _file(path: str, file: Path, media_type: str) -> Route:
    async def answer(request: Request) -> FileResponse:
        del request
        return FileResponse(file, media_type=media_type, headers=_A_DAY)

    return Route(path, answer, include_in_schema=False)
