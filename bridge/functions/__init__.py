"""Functions that the agent may call, written by users of bridge in plain Python.

    from typing import Annotated

    from bridge.functions import PhoneCall, function

    @function(defer_until_eot=True)
    async def book_table(
        guests: int, hour: Annotated[int, "24-hour clock"], call: PhoneCall
    ) -> dict[str, int]:
        \"\"\"Book a table for tonight.\"\"\"
        number = await bookings.add(guests, hour, phone=call.caller)
        return {"booking": number}

The module is named in `config.toml` (`[functions] module = "my_functions"`). `registry` collects
its functions and describes them to the agent; `in_flight` runs the function calls of a phone call.
"""

from __future__ import annotations

from bridge.caller import CallInfo
from bridge.functions.errors import FunctionError, NotTaken
from bridge.functions.phone_call import PhoneCall
from bridge.functions.registry import Function, Functions, function

__all__ = [
    "CallInfo",
    "Function",
    "FunctionError",
    "Functions",
    "NotTaken",
    "PhoneCall",
    "function",
]
