"""HTTP/2, where an operator offers it: hypercorn's, but a refused request ends only itself.

hypercorn forgets a stream when its answer has been sent, and raises KeyError for what arrives of
its body afterwards. That ended the connection, with all other requests on it; a webhook without a
signature, which is answered before its body is read, did so every time.
"""

from __future__ import annotations

from typing import Any

from h2.errors import ErrorCodes
from h2.events import DataReceived
from hypercorn.protocol.h2 import H2Protocol


class GuardedH2Protocol(H2Protocol):
    """hypercorn's HTTP/2, which asks a client to stop sending the body of an answered request."""

    async def _handle_events(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, DataReceived) and event.stream_id not in self.streams:
                self.connection.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id
                )
                # https://www.rfc-editor.org/rfc/rfc9113#section-8.1
                self.connection.reset_stream(event.stream_id, ErrorCodes.NO_ERROR)
            else:
                await super()._handle_events([event])
        await self._flush()
