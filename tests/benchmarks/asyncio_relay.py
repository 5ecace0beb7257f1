"""The floor that `relay` compares bridge with: the least program that carries the same calls.

    python -m tests.benchmarks.asyncio_relay --bind 127.0.0.1:5000 --frame-ms 20
        --agent ws://127.0.0.1:9000/v1/agent/converse

It runs on asyncio with uvloop and websockets, the fastest common choice for Python, without
compression and keep-alive pings, and decodes JSON with msgspec's typed decoders as bridge does. It
does what a relay must do: webhook, media socket, agent session, caller's audio in frames of the
same length, agent's audio to the phone message by message. It has none of what makes a bridge: no
signatures, barge-in, functions, deadlines, teardown, log or records. So it is a lower bound, not a
competitor.
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
    """Carries calls to the agent at one address."""

    def __init__(self, agent: str, frame_ms: int) -> None:
        self._agent = agent
        self._frame_bytes = frame_ms * 8
        self._media_socket = ""

    async def serve(self, host: str, port: int) -> None:
        """Serve webhooks at this address, and calls at another port, until cancelled."""
        # websockets does not serve POST requests, so the webhook has a server of its own.
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
            pass  # a connection that only tests whether the server listens
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
    parser = argparse.ArgumentParser(prog="asyncio_relay", description="The floor of `relay`.")
    parser.add_argument("--bind", required=True, metavar="HOST:PORT")
    parser.add_argument("--agent", required=True, metavar="URL")
    parser.add_argument("--frame-ms", type=int, default=20)
    options = parser.parse_args()
    host, _, port = options.bind.rpartition(":")
    try:
        uvloop.run(Relay(options.agent, options.frame_ms).serve(host, int(port)))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
