"""The time from the webhook to the greeting, with `deepgram.prewarm` and without.

    python -m tests.benchmarks.prewarm [--calls 20]

The server is bridge on real sockets; the distance of its peers is simulated. Twilio opens the media
socket half a second after the webhook's answer (the TwiML travels and a TLS connection is made).
The agent takes half a second from the connection to SettingsApplied, and some more until it speaks.
Calls with and without prewarming take turns, one at a time. The measured time runs from the
webhook's request to the first byte of the greeting at the phone.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Final

import trio
from msgspec.structs import replace

from bridge.testing.agent.server import AgentSession
from bridge.testing.phone.phone import SimulatedPhone
from bridge.testing.phone.webhook import open_network_stream
from tests.world import AUTH_TOKEN, QUIET, on_loopback, settings

# The simulated distances, in seconds. `bridge check` prints the agent's from your machine; Twilio
# publishes none.
TWILIO_SECONDS: Final = 0.5
WELCOME_SECONDS: Final = 0.25
SETTINGS_SECONDS: Final = 0.25
SPEECH_SECONDS: Final = 0.2

GREETING: Final = b"\x11" * 1600
CALL_SECONDS: Final = 30.0

AGENT: Final = replace(
    QUIET, welcome_delay=WELCOME_SECONDS, settings_applied_delay=SETTINGS_SECONDS
)


async def _greet(agent: AgentSession) -> None:
    await trio.sleep(SPEECH_SECONDS)
    await agent.say("Hello.", GREETING)


async def _call(url: str) -> float:
    """Place one call; return the seconds from the webhook's request to the greeting."""
    connections = 0

    async def open_stream(host: str, port: int, tls: bool) -> trio.abc.Stream:
        nonlocal connections
        connections += 1
        if connections == 2:  # the media socket
            await trio.sleep(TWILIO_SECONDS)
        return await open_network_stream(host, port, tls)

    phone = SimulatedPhone(strict=True, auth_token=AUTH_TOKEN, open_stream=open_stream)
    began = trio.current_time()
    with trio.fail_after(CALL_SECONDS):
        async with phone.place_call(url):
            await phone.wait_heard(0.001)
            seconds = trio.current_time() - began
            await phone.hang_up()
    return seconds


async def measure(calls: int) -> dict[bool, list[float]]:
    """Place `calls` calls each way; return seconds to the greeting, by prewarming on or off."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(calls):
        for prewarm in (False, True):
            using = settings(deepgram={"prewarm": prewarm}, logging={"level": "warning"})
            async with on_loopback(_greet, AGENT, using) as world:
                found[prewarm].append(await _call(world.base_url))
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.prewarm")
    parser.add_argument("--calls", type=int, default=20)
    found = trio.run(measure, parser.parse_args().calls)
    print(
        f"Twilio {TWILIO_SECONDS:g} s from the webhook's answer to the socket, the agent "
        f"{WELCOME_SECONDS + SETTINGS_SECONDS:g} s to SettingsApplied and {SPEECH_SECONDS:g} s to "
        "its first audio"
    )
    for prewarm, seconds in found.items():
        middle, most = 1000 * statistics.median(seconds), 1000 * max(seconds)
        name = "with prewarming" if prewarm else "without"
        print(f"{name:16} {middle:5.0f} ms median, {most:5.0f} ms at most, {len(seconds)} calls")


if __name__ == "__main__":
    main()
