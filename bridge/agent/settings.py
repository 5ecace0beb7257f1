"""The Settings message: the configured agent, with audio as the phone has it. Pure.

https://developers.deepgram.com/docs/configure-voice-agent
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from bridge.audio import SAMPLE_RATE

# Not left to the configuration: Twilio carries this and nothing else, and a container's header
# would be played to the caller as noise.
PHONE_AUDIO = {
    "input": {"encoding": "mulaw", "sample_rate": SAMPLE_RATE},
    "output": {"encoding": "mulaw", "sample_rate": SAMPLE_RATE, "container": "none"},
}


def settings_message(agent: Mapping[str, Any]) -> str:
    """Return the Settings message for an `[agent]` table, passed through key by key.

    Deepgram's schema is strict and grows faster than any list here, so nothing is added, renamed or
    checked. Integers stay integers.
    """
    return msgspec.json.encode({"type": "Settings", "audio": PHONE_AUDIO, "agent": agent}).decode()
