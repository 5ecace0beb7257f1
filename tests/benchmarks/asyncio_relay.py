"""What `relay` compares bridge with: the least that carries the same calls, on asyncio.

    python -m tests.benchmarks.asyncio_relay --bind 127.0.0.1:5000 --frame-ms 60
        --agent ws://127.0.0.1:9000/v1/agent/converse

uvloop and websockets, the fastest there is for Python, with compression and keep-alive pings off,
and JSON by msgspec's typed decoders as in bridge. It does what a relay cannot leave out: webhook,
media socket, agent session, caller's audio in frames of the same length, agent's audio to the
phone message by message. It has nothing of what makes a bridge: no barge-in, no functions, no
bounds on waits, no teardown but the sockets' own, no log, no record. So it is a floor, no rival.
"""

from __future__ import annotations

import argparse
import asyncio
import base64

import msgspec
import uvloop
import websockets

_SETTINGS = '{"type":"Settings"}'
_TWIML = '<Response><Connect><Stream url="ws://%s/media-stream"/></Connect></Response>'


class _Payload(msgspec.Struct):
    payload: bytes


class _Start(msgspec.Struct, rename="camel"):
    stream_sid: str


class _FromPhone(msgspec.Struct):
    event: str
    media: _Payload | None = None
    start: _Start | None = None


_decode = msgspec.json.Decoder(_FromPhone).decode


class Relay:
    """Carries any number of calls to the agent at one address."""

    def __init__(self, agent: str, frame_ms: int) -> None:
        self._agent = agent
        self._frame_bytes = frame_ms * 8
        self._media_socket = ""

    async def serve(self, host: str, port: int) -> None:
        """Answer webhooks at this address, and calls at another of the same host, for ever."""
        # websockets takes no POST, so that the webhook is somebody else's.
        calls = await websockets.serve(
            self._call, host, 0, compression=None, ping_interval=None, max_queue=64
        )
        self._media_socket = f"{host}:{next(iter(calls.sockets)).getsockname()[1]}"
        webhook = await asyncio.start_server(self._webhook, host, port)
        await webhook.serve_forever()

    async def _webhook(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            body = _TWIML % self._media_socket
            head = f"Content-Type: text/xml\r\nContent-Length: {len(body)}"
            writer.write(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}".encode())
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # whoever asks whether the server is there
        writer.close()

    async def _call(self, phone: websockets.ServerConnection) -> None:
        sid = ""
        while not sid:
            message = _decode(await phone.recv())
            if message.start is not None:
                sid = message.start.stream_sid
        async with websockets.connect(
            self._agent, compression=None, ping_interval=None, max_queue=64
        ) as agent:
            await agent.recv()  # Welcome
            await agent.send(_SETTINGS)
            await agent.recv()  # SettingsApplied
            async with asyncio.TaskGroup() as tasks:
                downlink = tasks.create_task(self._downlink(agent, phone, sid))
                await self._uplink(phone, agent)
                downlink.cancel()

    async def _uplink(
        self, phone: websockets.ServerConnection, agent: websockets.ClientConnection
    ) -> None:
        audio = bytearray()
        async for text in phone:
            message = _decode(text)
            if message.media is not None:
                audio += message.media.payload
                if len(audio) >= self._frame_bytes:
                    await agent.send(bytes(audio))
                    audio.clear()
            elif message.event == "stop":
                await agent.send(bytes(audio))
                return

    async def _downlink(
        self, agent: websockets.ClientConnection, phone: websockets.ServerConnection, sid: str
    ) -> None:
        head = f'{{"event":"media","streamSid":"{sid}","media":{{"payload":"'
        async for message in agent:
            if isinstance(message, bytes):
                await phone.send(f'{head}{base64.b64encode(message).decode()}"}}}}')


def main() -> None:
    """Serve from the command line, until a signal."""
    parser = argparse.ArgumentParser(prog="asyncio_relay", description="A floor for `relay`.")
    parser.add_argument("--bind", required=True, metavar="HOST:PORT")
    parser.add_argument("--agent", required=True, metavar="URL")
    parser.add_argument("--frame-ms", type=int, default=60)
    options = parser.parse_args()
    host, _, port = options.bind.rpartition(":")
    try:
        uvloop.run(Relay(options.agent, options.frame_ms).serve(host, int(port)))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
