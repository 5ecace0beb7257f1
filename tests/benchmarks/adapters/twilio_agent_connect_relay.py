"""Twilio Agent Connect carrying the load of `peers`. Runs in the environment of that package.

    python twilio_agent_connect_relay.py --bind 127.0.0.1:5000 --agent ws://127.0.0.1:9000

Twilio's framework as it comes: its FastAPI server under uvicorn, signatures checked, and its voice
channel for Media Streams with the OpenAI Realtime provider. Only the address of the model changes:
the session goes to the echoing agent of the benchmark, which speaks that protocol.
"""

from __future__ import annotations

import argparse
import os
from types import SimpleNamespace
from typing import Any

# The framework reads this when it is imported; a benchmark must not report usage.
os.environ["TAC_ANALYTICS_DISABLED"] = "true"

import uvicorn
import websockets
from tac import TAC
from tac.channels.voice import VoiceChannel
from tac.channels.voice.media_streams.openai_realtime import (
    TWILIO_AUDIO_FORMAT_FOR_REALTIME,
    OpenAIRealtimeProviderConfig,
    provider,
)
from tac.core.config import TACConfig
from tac.server import TACFastAPIServer, TACServerConfig


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", required=True, metavar="HOST:PORT")
    parser.add_argument("--agent", required=True, metavar="URL")
    parser.add_argument("--frame-ms", help="ignored: each message goes on as it comes")
    options = parser.parse_args()
    host, _, port = options.bind.rpartition(":")

    def connect(_url: str, **others: Any) -> Any:
        return websockets.connect(options.agent, **others)

    provider.websockets = SimpleNamespace(connect=connect)
    tac = TAC(
        TACConfig(
            account_sid="AC" + "0" * 32,
            auth_token=os.environ["TWILIO_AUTH_TOKEN"],
            api_key="SK" + "0" * 32,
            api_secret="benchmark",
            phone_number="+15550100002",
            log_level="WARNING",
            voice_public_domain=options.bind,
            voice_websocket_path="/media-stream",
        )
    )
    audio = {"format": TWILIO_AUDIO_FORMAT_FOR_REALTIME}
    session = {"type": "realtime", "model": "echo", "audio": {"input": audio, "output": audio}}
    channel = VoiceChannel(
        tac,
        config=OpenAIRealtimeProviderConfig(
            openai_api_key="benchmark", default_session_config=session
        ),
    )
    server = TACFastAPIServer(
        tac, channel, config=TACServerConfig(host=host, port=int(port), twiml_path="/incoming-call")
    )

    async def behind_tls(scope: Any, receive: Any, send: Any) -> None:
        # Twilio signs wss://; in production, the proxy that ends TLS says so.
        if scope["type"] == "websocket":
            scope = {**scope, "scheme": "wss"}
        await server.app(scope, receive, send)

    uvicorn.run(behind_tls, host=host, port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
