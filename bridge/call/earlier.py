"""What came before a leg of a call: the legs before it, with the conversation so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Earlier(NamedTuple):
    """The legs of a call before this one. Empty for the first leg.

    The call began `seconds` before this leg, which is number `leg`. `history` are History items for
    the agent, which resumes the conversation; without any, it begins a new one. `words` are what it
    says first.
    """

    leg: int = 1
    seconds: float = 0.0
    history: Sequence[Mapping[str, Any]] = ()
    words: str = ""


NOTHING_EARLIER = Earlier()
