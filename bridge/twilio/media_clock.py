"""When the caller's audio was spoken, whatever the network did to it on the way. Sans-I/O.

Theory of operation. Each piece carries a timestamp of Twilio's own clock, and each is received some
time after it. This lag is never below that of a piece that came straight through; whatever is above
it is a delay of the network, of Twilio or of a busy server, and is taken off. The two clocks drift
apart, so the least lag may rise slowly.

https://www.twilio.com/docs/voice/media-streams/websocket-messages#media-message
"""

from __future__ import annotations

import math
from typing import Final

# The least lag may rise by this much with each piece of 20 ms: 0.1 %, more than clocks drift.
DRIFT: Final = 0.000_02

# A piece that is later than this is not delayed: the timestamps have begun anew.
LATEST: Final = 5.0


class MediaClock:
    """The clock of one media stream. Times are in seconds on the clock of `received_at`."""

    __slots__ = ("_lag",)

    def __init__(self) -> None:
        self._lag = math.inf  # the least, between a piece's timestamp and its arrival

    def spoken_at(self, timestamp: str | float | None, received_at: float) -> float:
        """Return when a piece would have been received without delay: just after it was spoken.

        `timestamp` is Twilio's, in milliseconds. If it is missing or no number, the piece counts as
        not delayed. The result is never later than `received_at`.
        """
        try:
            at = float(timestamp) / 1000  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return received_at
        lag, least = received_at - at, self._lag + DRIFT
        # Written so that a NaN begins anew, too: with the piece after it.
        if lag < least or not lag < least + LATEST:
            least = lag
        self._lag = least
        return min(received_at, received_at - (lag - least))
