"""Why a connection could not be made, found behind what a library raised. Pure."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["certificate", "tls", "name", "refused", "other"]


@dataclass(frozen=True, slots=True)
class ConnectError:
    """What kind of trouble, and the words of whoever met it."""

    kind: Kind
    why: str


def connect_error(error: BaseException) -> ConnectError:
    """The trouble behind an error: certificates before names, names before ports."""
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
    """An error and all that is behind it, groups opened; innermost last."""
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
