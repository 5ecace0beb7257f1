"""Errors of functions: caused by the user, by the agent, and by the state of the phone call."""

from __future__ import annotations

from bridge.config.settings import ConfigError


class FunctionError(ConfigError):
    """The user's functions cannot be used. One line: the function, the fault, the remedy."""


class BadArguments(Exception):
    """The agent's arguments do not fit the function. The message goes to the agent: the parameter,
    the expected type and what was sent.
    """


class NotTaken(Exception):
    """The phone call does not take this now: it is ending, or too much is waiting. The message says
    which, in one line."""
