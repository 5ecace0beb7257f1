"""The console and the softphone: HTML, CSS and JavaScript from the package, with their headers.

A page is a shell without data and without secrets, which any client may load: it requests its data
from the control API, with the operator's token. Nothing is loaded from another host, the HTML
contains no script or style, and no other site may frame a page.

The files are small and are read once. Browsers cache them and revalidate at each use, so that a
page never runs the scripts of an older server.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from quart import Blueprint, Response, request

from bridge.http.current import origin_of

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Scripts and styles come from this server. The media socket's addresses are listed besides 'self',
# because some browsers do not count wss:// as the page's own origin.
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


class Asset(NamedTuple):
    """One file, as it is served."""

    body: bytes
    content_type: str
    etag: str


pages = Blueprint("pages", __name__)


@pages.after_request
async def secure(response: Response) -> Response:
    """Restrict what a page may load, and who may load it."""
    response.headers["Content-Security-Policy"] = _POLICY.format(host=_host())
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    microphone = "(self)" if request.endpoint == "pages.softphone" else "()"
    response.headers["Permissions-Policy"] = f"microphone={microphone}, camera=(), geolocation=()"
    # Cached, and revalidated at each use.
    response.headers["Cache-Control"] = "no-cache"
    return response


@pages.get("/")
async def console() -> Response:
    """Serve the console."""
    return _serve(load("console.html"))


@pages.get("/softphone")
async def softphone() -> Response:
    """Serve the softphone."""
    return _serve(load("softphone.html"))


@pages.get("/assets/<name>")
async def asset(name: str) -> Response:
    """Serve a script, a style or an icon."""
    found = assets().get(name)
    if found is None:
        return Response("There is no such file.\n", status=404, content_type="text/plain")
    return _serve(found)


@cache
def load(name: str) -> Asset:
    """Return a file of this package. Raises FileNotFoundError."""
    body = files(__name__).joinpath(name).read_bytes()
    suffix = name[name.rindex(".") :]
    return Asset(body, _TYPES[suffix], hashlib.sha256(body).hexdigest()[:32])


@cache
def assets() -> dict[str, Asset]:
    """Return the files of `/assets/` by name."""
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
    """Return the request's host, without characters that would end the policy's directive."""
    host = origin_of(request).host
    return "".join(char for char in host if char.isascii() and (char.isalnum() or char in ".-:[]_"))
