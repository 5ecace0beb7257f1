"""The door of everything that is the operator's: the control API, the softphone's route.

`access` says who may come in; this asks it about each request of a blueprint, and answers those who
may not.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from quart import Blueprint, Response, g, jsonify, request

from bridge.http.operator_auth import Gate, Seen
from bridge.log import get_logger

log = get_logger(__name__)


def keep_the_door(
    blueprint: Blueprint,
    gate: Gate,
    token: Callable[[], str],
    *,
    what: str,
    open_to_all: Container[str] = (),
) -> None:
    """Let nobody use `blueprint` whom `gate` refuses, and no cache keep what it answers.

    `token` gives BRIDGE_API_TOKEN, "" without one. `what` names the blueprint in the log.
    `open_to_all` are endpoints that have a door of their own.
    """

    @blueprint.before_request
    async def let_in() -> tuple[Response, int, dict[str, str]] | None:
        if request.endpoint in open_to_all:
            return None
        refused = gate.refusal(token(), request.headers, peer(), g.get("seen"))
        if refused is None:
            return None
        if refused.is_news:
            log.warning(f"{what} refused", status=refused.status, peer=client())
        extra = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
        return jsonify(error=refused.message), refused.status, extra

    @blueprint.after_request
    async def not_kept(response: Response) -> Response:
        # Phone numbers, transcripts and tickets belong in no cache.
        response.headers["Cache-Control"] = "no-store"
        return response


def peer() -> str:
    """The address this request's connection came from, as the server's socket has it."""
    address = request.scope.get("client")
    return str(address[0]) if address else ""


def client() -> str:
    """Who asked, for the log: through the proxies that are trusted, if the application knows."""
    seen: Seen | None = g.get("seen")
    return seen.client if seen is not None else peer()
