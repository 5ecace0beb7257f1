"""The transport of a simulated agent's session, with faults on request.

trio-websocket answers Close and Ping frames and closes TCP by itself, so faults are injected below
it, in the byte stream.
"""

from __future__ import annotations

import socket
import struct

import trio

from bridge.testing.agent.behaviour import Behaviour

# First bytes of a server's frames: a whole message, unmasked, of opcode 8 (Close) or 10 (Pong).
CLOSE = 0x88
PONG = 0x8A


class Wire(trio.abc.Stream):
    """A stream that withholds what the behaviour says, and can stop reading, or freeze."""

    def __init__(self, transport: trio.abc.Stream, behaviour: Behaviour) -> None:
        self._transport = transport
        self._behaviour = behaviour
        self._stopped = self._frozen = False
        self._held = False
        self.initiating_close = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, except answers to the client's Close or Ping that the behaviour withholds, and
        anything after `freeze`."""
        first = data[0] if data else 0
        if first == CLOSE and not self._behaviour.answers_close and not self.initiating_close:
            self._held = True
            await trio.lowlevel.checkpoint()
        elif self._frozen or (first == PONG and not self._behaviour.answers_pings):
            await trio.lowlevel.checkpoint()
        else:
            await self._transport.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait like the transport."""
        await self._transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive; after `stop_reading`, wait `linger` seconds and raise BrokenResourceError."""
        data = b"" if self._stopped else await self._transport.receive_some(max_bytes)
        if self._stopped:
            await trio.sleep(self._behaviour.linger)
            raise trio.BrokenResourceError("the server stopped reading")
        return data

    def stop_reading(self) -> None:
        """Stop reading: the client's data stays in the network's buffers."""
        self._stopped = True

    def freeze(self) -> None:
        """Read and send nothing any more, as a process that hangs: its kernel keeps TCP up."""
        self._stopped = self._frozen = True

    async def reset(self) -> None:
        """Lose the connection at once: over TCP by RST, without a closing handshake."""
        if isinstance(self._transport, trio.SocketStream):
            # SO_LINGER of zero makes close() send RST.
            self._transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self._transport)

    async def aclose(self) -> None:
        """Close the transport, unless it is to be held open."""
        if self._held or not self._behaviour.closes_tcp:
            self._held = True
            await trio.lowlevel.checkpoint()
        else:
            await self._transport.aclose()

    async def finish(self) -> None:
        """Close the transport; one held open stays until the client closes it, or for `linger`."""
        try:
            if self._held:
                with trio.move_on_after(self._behaviour.linger):
                    while await self._transport.receive_some(65536):
                        pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # closed by the client, as expected
        finally:
            await trio.aclose_forcefully(self._transport)
