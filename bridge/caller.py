"""The call, as a function sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

# Twilio's Direction of a call that was placed through its REST API.
OUTBOUND: Final = "outbound-api"


class CallInfo(msgspec.Struct, frozen=True):
    """Facts of the phone call in which a function runs.

    A function gets them in every parameter annotated `CallInfo`, whatever its name; the agent
    neither sees nor fills it. `caller` and `called` are E.164 numbers, or addresses such as
    `sip:ann@example.com`; `caller` is "" when the number was withheld, either is "" when Twilio did
    not say. `parameters` are the stream's custom parameters. All of it was sent by the network.
    """

    call_sid: str = ""
    stream_sid: str = ""
    caller: str = ""
    called: str = ""
    parameters: Mapping[str, str] = {}
