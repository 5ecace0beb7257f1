"""The pages: plain HTML, CSS and JavaScript out of the package, with the headers that keep them to
themselves.

A page is a shell. It holds no data and no secret: what it shows it asks the control API for, with
the operator's token. So with a token set anybody may have the shell, and the API decides; without
one the whole of it is for this machine only, as the API is. Nothing comes from another host, no
script or style stands in the HTML, and no other site may put a page into a frame.

The files are small and are read once. A browser keeps them, and asks each time whether they have
changed: an upgrade of the server never meets yesterday's script.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from quart import Blueprint, Response, g, request

from bridge.http.operator_auth import Seen, may_see_pages

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Scripts and styles are files of ours. The socket's addresses are named besides 'self', because
# not every browser takes a wss address for the page's own.
# https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Content-Security-Policy
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self' ws://{host} wss://{host}",
        "img-src 'self' data:",
        "media-src 'self'",
        "worker-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)

_NOT_HERE: Final = (
    "This page is for this machine only, because BRIDGE_API_TOKEN is not set. Set it, and restart "
    "the server, to use the page from elsewhere.\n"
)


class Asset(NamedTuple):
    """One file as it is served."""

    body: bytes
    content_type: str
    etag: str


def pages_blueprint(token: Callable[[], str]) -> Blueprint:
    """The routes of the pages: `GET /`, `GET /softphone`, `GET /assets/<name>`.

    `token` gives BRIDGE_API_TOKEN or "", asked at each request.
    """
    pages = Blueprint("pages", __name__)

    @pages.before_request
    async def let_in() -> Response | None:
        client = request.scope.get("client")
        if may_see_pages(token(), request.headers, str(client[0]) if client else ""):
            return None
        return Response(_NOT_HERE, status=403, content_type="text/plain; charset=utf-8")

    @pages.after_request
    async def keep_to_itself(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = _POLICY.format(host=_host())
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        microphone = "(self)" if request.endpoint == "pages.softphone" else "()"
        response.headers["Permissions-Policy"] = (
            f"microphone={microphone}, camera=(), geolocation=()"
        )
        # Kept, but never used without asking.
        response.headers["Cache-Control"] = "no-cache"
        return response

    @pages.get("/")
    async def console() -> Response:
        return _serve(load("console.html"))

    @pages.get("/softphone")
    async def softphone() -> Response:
        return _serve(load("softphone.html"))

    @pages.get("/assets/<name>")
    async def asset(name: str) -> Response:
        found = assets().get(name)
        if found is None:
            return Response("There is no such file.\n", status=404, content_type="text/plain")
        return _serve(found)

    return pages


@cache
def load(name: str) -> Asset:
    """A file of this package. Raises FileNotFoundError."""
    body = files(__name__).joinpath(name).read_bytes()
    suffix = name[name.rindex(".") :]
    return Asset(body, _TYPES[suffix], hashlib.sha256(body).hexdigest()[:32])


@cache
def assets() -> dict[str, Asset]:
    """What `/assets/` has, by name: the files of the folder and nothing else, whatever is asked."""
    folder = files(__name__).joinpath("assets")
    names = sorted(item.name for item in folder.iterdir())
    return {name: load(f"assets/{name}") for name in names if name[name.rfind(".") :] in _TYPES}


def _serve(asset: Asset) -> Response:
    if request.if_none_match.contains(asset.etag):
        response = Response(b"", status=304)
    else:
        response = Response(asset.body, content_type=asset.content_type)
    response.set_etag(asset.etag)
    return response


def _host() -> str:
    """What the browser asked for, without what would end a directive or begin another."""
    seen: Seen | None = g.get("seen")
    host = seen.hosts[0] if seen is not None else request.headers.get("Host", "")
    return "".join(char for char in host if char.isascii() and (char.isalnum() or char in ".-:[]_"))
