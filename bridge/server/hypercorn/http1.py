"""HTTP/1.1 without protocol upgrades: hypercorn's, but a peer cannot change it to HTTP/2.

On any connection hypercorn would change to HTTP/2 when the peer says so, and stop its timer for
idle ones: a peer that then asks for nothing stays for as long as it likes. Twilio, browsers and
proxies speak HTTP/2 by TLS or not at all, and an operator can still offer it there.
"""

from __future__ import annotations

import h11
from hypercorn.events import Closed
from hypercorn.protocol.h11 import H11Protocol


class GuardedH11Protocol(H11Protocol):
    """hypercorn's HTTP/1.1, which ignores `Upgrade: h2c` and refuses HTTP/2's preface with 505."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Upgrade to nothing; RFC 9110, section 7.8 lets a server ignore the request to."""

    async def _create_stream(self, request: h11.Request) -> None:
        if request.http_version == b"2.0":
            await self._send_error_response(505)
            await self.send(Closed())
        else:
            await super()._create_stream(request)
