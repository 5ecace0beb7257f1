"""Finds the reason for a failed connection behind the exceptions of libraries."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["certificate", "tls", "name", "refused", "other"]


@dataclass(frozen=True, slots=True)
class ConnectError:
    """The kind of failure, and the original error's text."""

    kind: Kind
    why: str


def connect_error(error: BaseException) -> ConnectError:
    """Classify an error by the first cause that is recognised, outermost first."""
    for cause in causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return ConnectError("certificate", cause.verify_message or str(cause))
            case ssl.SSLError():
                return ConnectError("tls", cause.reason or str(cause))
            case socket.gaierror():
                return ConnectError("name", cause.strerror or str(cause))
            case ConnectionRefusedError():
                return ConnectError("refused", "the connection was refused")
    return ConnectError("other", str(error) or type(error).__name__)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its causes and contexts, and the members of groups; each once."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__context__, one.__cause__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
