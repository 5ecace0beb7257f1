"""The pages: plain HTML, CSS and JavaScript served from the package, with strict headers.

A page is a shell without data or secrets: it fetches what it shows from the control API, with the
operator's token. When a token is set, any client may load the shell, and the API decides what it
may see; without one the pages, like the API, are served to this machine only. Nothing is loaded
from another host, the HTML has no inline script or style, and no other site may frame a page.

The files are small and are read once. A browser caches them and revalidates each time, so a page
never runs scripts of an older server.
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

# Scripts and styles come from this server. The socket's addresses are listed besides 'self', since
# not every browser counts wss: on the page's own host as 'self'.
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
    "This page is available on this machine only, because BRIDGE_API_TOKEN is not set. To use it "
    "from elsewhere, set BRIDGE_API_TOKEN and restart the server.\n"
)


class Asset(NamedTuple):
    """A file with its headers: `etag` is a digest of the body."""

    body: bytes
    content_type: str
    etag: str


def pages_blueprint(token: Callable[[], str]) -> Blueprint:
    """Return the routes of the pages: `GET /`, `GET /softphone`, `GET /assets/<name>`.

    `token` returns BRIDGE_API_TOKEN or ""; it is called for each request.
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
        # May be cached, but must be revalidated.
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
            return Response("No such file.\n", status=404, content_type="text/plain")
        return _serve(found)

    return pages


@cache
def load(name: str) -> Asset:
    """Read a file of this package, once. Raises FileNotFoundError."""
    body = files(__name__).joinpath(name).read_bytes()
    suffix = name[name.rindex(".") :]
    return Asset(body, _TYPES[suffix], hashlib.sha256(body).hexdigest()[:32])


@cache
def assets() -> dict[str, Asset]:
    """Return the files below `/assets/` by name. Requests can name these files only."""
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
    """Return the requested host, without characters that could end or begin a CSP directive."""
    seen: Seen | None = g.get("seen")
    host = seen.hosts[0] if seen is not None else request.headers.get("Host", "")
    return "".join(char for char in host if char.isascii() and (char.isalnum() or char in ".-:[]_"))
