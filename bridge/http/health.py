"""Routes about the server itself: liveness, readiness, metrics, and the API's description."""

from __future__ import annotations

from typing import Any

from quart import Blueprint, Response, request

from bridge.http.current import current_bridge
from bridge.http.openapi import description
from bridge.server.instance import HEADER, instance

health = Blueprint("health", __name__)


@health.get("/healthz")
async def healthz() -> tuple[str, dict[str, str]]:
    """Answer that the process is alive, and which server it belongs to."""
    return "ok\n", {HEADER: instance()}


@health.get("/readyz")
async def readyz() -> tuple[str, int]:
    """Answer whether new calls are taken; 503 while draining or full."""
    bridge = current_bridge()
    if bridge.entrance.draining:
        return "draining\n", 503
    if bridge.entrance.is_full(bridge.settings_now()):
        return "full\n", 503
    return "ready\n", 200


@health.get("/metrics")
async def metrics() -> Response:
    """Answer Prometheus with the metrics of all worker processes, a second old at most."""
    body, content_type = await current_bridge().scrapes.answer(request.headers.get("Accept"))
    return Response(body, content_type=content_type)


@health.get("/openapi.json")
async def openapi() -> dict[str, Any]:
    """Answer the description of all routes."""
    return description()
