"""Those who watch calls: records, the live view, metrics, traces.

A call acts first and tells afterwards; an observer that fails is logged and keeps nothing from
ending.
"""

from __future__ import annotations

from collections.abc import Callable

from bridge.call.parts import CallParts
from bridge.log import get_logger

log = get_logger(__name__)


class Observer:
    """Is told what happens in calls. Override what is of interest; never wait, never raise."""

    def began(self, call: CallParts) -> None:
        """The phone has introduced itself: there is a call."""

    def changed(self, call: CallParts) -> None:
        """There is something new to see of it."""

    def is_ending(self, call: CallParts) -> None:
        """Its outcome is known."""

    def ended(self, call: CallParts) -> None:
        """It is over, to the last byte, and its report complete."""


class Observers(Observer):
    """Several observers as one, told in this order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def began(self, call: CallParts) -> None:
        """Tell all."""
        self._tell(lambda one: one.began(call))

    def changed(self, call: CallParts) -> None:
        """Tell all."""
        self._tell(lambda one: one.changed(call))

    def is_ending(self, call: CallParts) -> None:
        """Tell all."""
        self._tell(lambda one: one.is_ending(call))

    def ended(self, call: CallParts) -> None:
        """Tell all."""
        self._tell(lambda one: one.ended(call))

    def _tell(self, tell: Callable[[Observer], None]) -> None:
        for one in self._observers:
            try:
                tell(one)
            except Exception:
                log.exception("an observer of calls failed", observer=type(one).__name__)
