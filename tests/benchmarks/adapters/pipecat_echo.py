"""Pipecat carrying the load of `peers`. Runs in an environment with pipecat-ai.

    python pipecat_echo.py --bind 127.0.0.1:5000

Pipecat as its telephony examples put it together: FastAPI under uvicorn, the FastAPI websocket
transport with the Twilio serializer at 8 kHz, and a pipeline. Pipecat has no client for an agent
that takes µ-law, so the pipeline itself returns the caller's audio. That spares it the second
websocket of each call; it has no signatures either. Its output is 20 ms pieces (its default is 40).
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

# Read when loguru is imported, which prints a banner of Pipecat's otherwise.
os.environ["LOGURU_LEVEL"] = "WARNING"

import uvicorn
from fastapi import FastAPI, Response, WebSocket
from pipecat.frames.frames import Frame, InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.workers.runner import WorkerRunner

RATE = 8000


class Echo(FrameProcessor):
    """Returns the caller's audio."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Turn audio from the input transport into audio for the output transport."""
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


async def carry(websocket: WebSocket) -> None:
    """Carry one call until the phone disconnects."""
    await websocket.accept()
    start: dict[str, Any] = {}
    while start.get("event") != "start":
        start = json.loads(await websocket.receive_text())
    serializer = TwilioFrameSerializer(
        start["start"]["streamSid"],
        start["start"]["callSid"],
        params=TwilioFrameSerializer.InputParams(auto_hang_up=False),
    )
    transport = FastAPIWebsocketTransport(
        websocket,
        FastAPIWebsocketParams(
            audio_in_enabled=True,
            audio_out_enabled=True,
            audio_out_10ms_chunks=2,
            add_wav_header=False,
            serializer=serializer,
        ),
    )
    worker = PipelineWorker(
        Pipeline([transport.input(), Echo(), transport.output()]),
        params=PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE),
    )

    @transport.event_handler("on_client_disconnected")
    async def hang_up(*_: object) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", required=True, metavar="HOST:PORT")
    parser.add_argument("--agent", help="ignored: the pipeline returns the audio")
    parser.add_argument("--frame-ms", help="ignored: each message goes on as it comes")
    options = parser.parse_args()
    host, _, port = options.bind.rpartition(":")
    app = FastAPI()

    @app.post("/incoming-call")
    async def webhook() -> Response:
        url = f"wss://{options.bind}/media-stream"
        twiml = f'<Response><Connect><Stream url="{url}"/></Connect></Response>'
        return Response(twiml, media_type="text/xml")

    app.websocket("/media-stream")(carry)
    uvicorn.run(app, host=host, port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
