"""The page's files and its data, over HTTP. Everybody who reaches the port may see them, as /metrics."""

import hashlib
from collections.abc import Callable
from importlib.resources import files

from fastapi import FastAPI, Request
from starlette.responses import Response

from router.dashboard.state import State

PATH = "/dashboard"
_HTML = "page.html"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PARTS = ("page.css", "page.js", "sections.js", "figures.js", "history.js", "draw.js", "icon.svg")

_HEADERS = {
    # Nothing from elsewhere, nothing inline, and in nobody's frame.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class _File:
    """One file of the package. A browser asks each time whether it has changed, and after an upgrade gets the new one."""

    def __init__(self, name: str) -> None:
        resource = files(__package__).joinpath(name)
        self._content = resource.read_bytes()
        tag = hashlib.sha256(self._content).hexdigest()[:16]
        self._type = f"{_KINDS[name[name.rindex('.') :]]}; charset=utf-8"
        self._headers = {**_HEADERS, "cache-control": "no-cache", "etag": f'"{tag}"'}

    def answer(self, http: Request) -> Response:
        if http.headers.get("if-none-match") == self._headers["etag"]:
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, media_type=self._type, headers=self._headers)


def add_dashboard(app: FastAPI, document: Callable[[], bytes]) -> None:
    """`document` gives a State as JSON; called for each poll."""
    _add_file(app, PATH, _HTML)
    for name in _PARTS:
        _add_file(app, f"{PATH}/{name}", name)

    @app.get(f"{PATH}/state.json", responses={200: {"model": State, "description": "The cluster as this router sees it."}})
    async def dashboard_state() -> Response:
        """What the page at /dashboard is drawn from."""
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        return Response(document(), media_type="application/json", headers=headers)


def _add_file(app: FastAPI, path: str, name: str) -> None:
    file = _File(name)

    async def answer(http: Request) -> Response:
        return file.answer(http)

    app.add_api_route(path, answer, methods=["GET"], include_in_schema=False, response_model=None)
