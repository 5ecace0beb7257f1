"""The simulated agent's voice: recorded clips for known sentences, a hum for all others.

The hum lasts as long as the words would, so any script can be heard without a synthesiser.
"""

from __future__ import annotations

import audioop
import math
import re
from array import array
from functools import lru_cache

from bridge.testing.speech import load_clip

SAMPLE_RATE = 8000
SECONDS_PER_CHARACTER = 0.06
SYLLABLES = 4  # a second: the hum swells and fades at about the pace of speech
TONES = (220, 277)  # Hz; A3 and C#4, a major third: soft, and not a telephone's own signal
LOUDNESS = 6000  # of 32767

DEFAULT_GREETING = "Hello! I am bridge's simulated agent. Say something, and I will repeat it."
CLIPS = {
    DEFAULT_GREETING: "hello",
    "Hello! How can I help you today?": "help",
    "You said:": "you-said",
    "Goodbye.": "goodbye",
    "Are you still there?": "still-there",
}


def speech_for(text: str) -> bytes:
    """The audio of `text`: µ-law at 8 kHz, a clip if there is one, else a hum of its length."""
    name = CLIPS.get(text.strip())
    return load_clip(name) if name is not None else hum(len(text) * SECONDS_PER_CHARACTER)


def sentences(text: str) -> list[str]:
    """`text` cut after each sentence, as the agent reports it."""
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


@lru_cache(maxsize=64)
def hum(seconds: float) -> bytes:
    """A soft two-tone hum of `seconds`, as µ-law at 8 kHz."""
    count = round(seconds * SAMPLE_RATE)
    second = _hum_second()
    samples = (second * (count // SAMPLE_RATE + 1))[:count]
    fade = min(160, count // 2)  # 20 ms at each end, against clicks
    for i in range(fade):
        samples[i] = samples[i] * i // fade
        samples[-1 - i] = samples[-1 - i] * i // fade
    # audioop takes the machine's own byte order, and so does array.
    return audioop.lin2ulaw(samples.tobytes(), 2)


@lru_cache(maxsize=1)
def _hum_second() -> array[int]:
    """One second of the hum, which joins on to itself: every frequency in it is a whole number."""
    step = 2 * math.pi / SAMPLE_RATE
    samples = array("h")
    for i in range(SAMPLE_RATE):
        swell = 0.65 - 0.35 * math.cos(step * SYLLABLES * i)
        tone = sum(math.sin(step * frequency * i) for frequency in TONES)
        samples.append(int(LOUDNESS / len(TONES) * swell * tone))
    return samples
