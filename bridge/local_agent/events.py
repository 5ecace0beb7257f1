"""What a speech worker is told when it starts, and what it tells. Pure; JSON between the two."""

from __future__ import annotations

import msgspec


class Setup(msgspec.Struct, frozen=True):
    """What a worker needs to know of a dialogue; times in seconds."""

    grammar: str = ""  # JSGF; empty: nothing is recognised, only spoken
    words: list[str] = []  # all that occur in the grammar
    pronunciations: dict[str, str] = {}  # of words that the dictionary lacks, in ARPAbet
    hangover: float = 0.5  # so much silence ends a turn
    longest_turn: float = 15.0  # noise that never falls silent is cut here
    voice: str = ""  # the engine; empty: the best there is
    likely: list[str] = []  # what will be said as it is: made in idle moments, so as to be at hand


class SetupError(ValueError):
    """The dialogue cannot be recognised: says which word, and the remedy."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker is loaded; `voice` is the name of its engine."""

    voice: str


class Unable(msgspec.Struct, frozen=True, tag="unable"):
    """The worker cannot do its work and ends; `reason` has the remedy."""

    reason: str


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The caller began to speak, `at` seconds into their audio."""

    at: float


class Recognised(msgspec.Struct, frozen=True, tag="recognised"):
    """The caller's turn is over.

    `phrase` is what it was if it was a known one, else ""; `dictation` is the best guess of
    somebody who knows no phrases; `distance` tells how far the nearest phrase was from it, 0 to 1.
    `started` and `ended` are where the speech lies in the caller's audio, `took` is how long the
    recogniser worked after its end; in seconds.
    """

    phrase: str
    dictation: str
    distance: float
    started: float
    ended: float
    took: float


Event = Ready | Unable | Started | Recognised
