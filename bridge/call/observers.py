"""Observers of calls: records, the live view, metrics, traces.

A call acts first and notifies afterwards; a failure of an observer is logged, and cannot keep a
call from ending.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bridge.log import get_logger

if TYPE_CHECKING:
    from bridge.call.parts import CallParts

log = get_logger(__name__)


class Observer:
    """Receives the events of calls. Override the methods you need; never wait, never raise."""

    def began(self, call: CallParts) -> None:
        """The call has begun: Twilio's `start` was received and admitted."""

    def changed(self, call: CallParts) -> None:
        """The call has changed visibly."""

    def is_ending(self, call: CallParts) -> None:
        """The call's outcome is known."""

    def ended(self, call: CallParts) -> None:
        """The call is over, its sockets are closed, and its report is complete."""


class Observers(Observer):
    """Several observers as one, notified in this order."""

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
                log.exception("call observer failed", observer=type(one).__name__)
