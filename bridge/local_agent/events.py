"""The messages between server and speech worker: the set-up, and the worker's events. JSON."""

from __future__ import annotations

import msgspec


class Setup(msgspec.Struct, frozen=True):
    """The part of a dialogue that a worker needs; times in seconds."""

    grammar: str = ""  # JSGF; empty: nothing is recognised, only spoken
    words: list[str] = []  # all words of the grammar
    pronunciations: dict[str, str] = {}  # of words missing in the dictionary, in ARPAbet
    hangover: float = 0.5  # silence that ends a turn
    longest_turn: float = 15.0  # a turn is ended here: noise may never fall silent
    voice: str = ""  # the engine; empty: the best one installed
    likely: list[str] = []  # fixed utterances, synthesised in advance when idle


class SetupError(ValueError):
    """The dialogue has a word that cannot be recognised; the message names it and the remedy."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker is loaded; `voice` is the name of its engine."""

    voice: str


class Unable(msgspec.Struct, frozen=True, tag="unable"):
    """The worker cannot work and ends; `reason` has the remedy."""

    reason: str


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The caller began to speak, `at` seconds into their audio."""

    at: float


class Recognised(msgspec.Struct, frozen=True, tag="recognised"):
    """The caller's turn has ended.

    `phrase` is the recognised phrase, or "" if none was close enough; `dictation` is the guess of a
    recogniser without phrases; `distance` is that of the nearest phrase, 0 (equal) to 1. `started`
    and `ended` are positions in the caller's audio, and `took` is how long the recogniser worked
    after the end, in seconds.
    """

    phrase: str
    dictation: str
    distance: float
    started: float
    ended: float
    took: float


Event = Ready | Unable | Started | Recognised
