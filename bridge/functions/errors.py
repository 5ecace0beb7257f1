"""Errors of functions: one caused by the user, one caused by the agent."""

from __future__ import annotations

from bridge.config.settings import ConfigError


class FunctionError(ConfigError):
    """The user's functions cannot be used. One line: the function, the fault, the remedy."""


class BadArguments(Exception):
    """The agent's arguments do not fit the function. The message goes to the agent: the parameter,
    the expected type and what was sent.
    """
