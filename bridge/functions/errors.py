"""What can be wrong with a function: the user's fault, or the agent's."""

from __future__ import annotations

from bridge.config.settings import ConfigError


class FunctionError(ConfigError):
    """The user's functions cannot be used. One line: which function, what, and how to mend it."""


class BadArguments(Exception):
    """The agent's arguments do not fit the function. The message is for the agent: which
    parameter, what was expected and what came.
    """
