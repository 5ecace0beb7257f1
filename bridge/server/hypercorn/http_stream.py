"""One HTTP request: hypercorn's, but it holds a place in the server only when it is whole.

hypercorn calls a connection busy from a request's head on. A peer that announces a body and never
sends it would then keep its place, for as long as the application waits, and a few hundred of them
would keep callers out (`bridge.server.limits`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypercorn.protocol.events import EndBody, Event, Request
from hypercorn.protocol.http_stream import HTTPStream

from bridge.server.hypercorn.connection import CONNECTION_KEY

if TYPE_CHECKING:
    from bridge.server.hypercorn.connection import GuardedTCPServer


class GuardedHTTPStream(HTTPStream):
    """One request of hypercorn's, which tells its connection when it begins and when it is whole.

    While a connection is made to wait for its next request's turn, nothing more is read from it.
    """

    _connection: GuardedTCPServer

    async def handle(self, event: Event) -> None:
        """Take what the peer sent."""
        if isinstance(event, Request):
            self._connection = event.state[CONNECTION_KEY]
            await self._connection.request_begins()
        elif isinstance(event, EndBody):
            self._connection.request_is_whole()
        await super().handle(event)
