"""The benchmark of prewarming measures what it claims to."""

from __future__ import annotations

from tests.benchmarks.prewarm import (
    SETTINGS_SECONDS,
    SPEECH_SECONDS,
    TWILIO_SECONDS,
    WELCOME_SECONDS,
    measure,
)


async def test_a_call_of_each_kind() -> None:
    """No call is quicker than its parts; how much slower depends on the machine."""
    agent = WELCOME_SECONDS + SETTINGS_SECONDS + SPEECH_SECONDS
    found = await measure(1)
    (cold,), (warm,) = found[False], found[True]
    assert cold >= TWILIO_SECONDS + agent
    assert warm >= max(TWILIO_SECONDS, agent)
