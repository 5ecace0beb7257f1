"""The local agent's reply delay, and the effect of its recogniser on the event loop.

    python -m tests.benchmarks.local_agent [--voice flite] [--rounds 1]

A simulated phone speaks phrases of the restaurant dialogue, in real time, through the server to the
local agent. The delay of a reply runs from the last sent frame that contains voice to the first
frame of the reply that the phone plays; half a second of it is the silence that ends a turn. The
event loop's lateness is that of a task that wakes every 20 ms, first without a call.
"""

from __future__ import annotations

import argparse
import audioop
import logging
import os
import statistics
from functools import partial

import structlog
import trio

from bridge.config.agent import default_agent
from bridge.config.file import FixedConfig
from bridge.config.secrets import Secrets
from bridge.config.settings import (
    CallSettings,
    DeepgramSettings,
    FunctionSettings,
    LoggingSettings,
    RecordSettings,
    ServerSettings,
    Settings,
)
from bridge.http.app import create_app
from bridge.local_agent.agent import local_agent
from bridge.local_agent.dialogue import load_dialogue
from bridge.local_agent.pool import Pool
from bridge.local_agent.synthesis import synthesise_all
from bridge.server.serve import hypercorn_config, serve
from bridge.testing.phone.phone import SimulatedPhone

PHRASES = (
    "when are you open",
    "what are your opening hours",
    "are you open tomorrow",
    "what is on the menu",
    "what do you recommend",
    "do you have anything vegetarian",
    "where are you",
    "how do I find you",
    "my name is robert",
    "are you a robot",
    "can you hear me",
    "book a table for three people on friday",
    "at seven thirty",
    "could you repeat that",
)
TOKEN = "a-token-of-the-benchmark"
TICK = 0.02
QUIET = 300  # of 32767: a frame whose root mean square is lower contains no voice
FRAME = 160


def trimmed(ulaw: bytes) -> bytes:
    """Cut the audio behind its last frame with voice."""
    frames = [ulaw[at : at + FRAME] for at in range(0, len(ulaw), FRAME)]
    while frames and audioop.rms(audioop.ulaw2lin(frames[-1], 2), 2) < QUIET:
        frames.pop()
    return b"".join(frames)


async def lateness(into: list[float]) -> None:
    while True:
        due = trio.current_time() + TICK
        await trio.sleep_until(due)
        into.append(1000 * (trio.current_time() - due))


def shown(late: list[float]) -> str:
    late = sorted(late)
    return f"median {late[len(late) // 2]:.1f}, 99th {late[int(len(late) * 0.99)]:.1f} ms"


async def measure(voice: str, rounds: int) -> None:
    dialogue = load_dialogue()
    speech = await synthesise_all(list(PHRASES), voice=voice)
    async with trio.open_nursery() as nursery:
        pool = Pool(dialogue.setup(), 1)
        await nursery.start(pool.run)
        agent = local_agent(dialogue, pool)
        port = await nursery.start(agent.serve)
        settings = Settings(
            server=ServerSettings(bind="127.0.0.1:0"),
            deepgram=DeepgramSettings(url=f"ws://127.0.0.1:{port}/v1/agent/converse"),
            call=CallSettings(idle_seconds=300, stall_seconds=300),
            functions=FunctionSettings(module="bridge.local_agent.restaurant"),
            records=RecordSettings(url=""),
            logging=LoggingSettings(level="error"),
            agent={**default_agent(), "greeting": "Good evening!"},
        )
        app = create_app(FixedConfig(settings), Secrets(twilio_auth_tokens=(TOKEN,)))
        run = partial(serve, app, hypercorn_config(settings), shutdown=trio.Event())
        (address,) = await nursery.start(run)
        idle: list[float] = []
        with trio.move_on_after(3):
            await lateness(idle)
        replies, right = [], 0
        busy: list[float] = []
        nursery.start_soon(lateness, busy)
        for number in range(1, rounds + 1):
            phone = SimulatedPhone(auth_token=TOKEN)
            async with phone.place_call(address):
                session = await agent.wait_for_session(number)
                await phone.wait_heard(0.5)
                await phone.wait_quiet(0.7)
                for text, words in zip(PHRASES, speech, strict=True):
                    heard, turns = phone.heard_seconds, len(session.turns)
                    await phone.say(trimmed(words))
                    ended = phone.elapsed
                    await phone.wait_heard(heard + 0.02)
                    await phone.wait_quiet(0.7)
                    began = next(start for start, _ in phone.heard_stretches if start > ended)
                    replies.append(began - ended)
                    said = session.turns[turns].text or ""
                    right += said == text.lower()
                    print(f"{1000 * replies[-1]:7.0f} ms  {text!r}: {said!r}", flush=True)
        nursery.cancel_scope.cancel(reason="measured")
    load = os.getloadavg()[0]
    print(f"\n{len(replies)} phrases in the voice of {voice}, answered with {pool.voice}:")
    print(f"reply begins after {1000 * statistics.median(replies):.0f} ms (median),")
    print(f"{1000 * min(replies):.0f} to {1000 * max(replies):.0f} ms; {right} recognised verbatim")
    print(f"event loop late by: idle {shown(idle)}; in the calls {shown(busy)}")
    print(f"{os.cpu_count()} processors, load average {load:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--voice", default="espeak-ng", help="the caller's: espeak-ng or flite")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    trio.run(measure, given.voice, given.rounds)


if __name__ == "__main__":
    main()
