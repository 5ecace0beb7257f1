"""The functions of `restaurant.toml` for `bridge demo`: a reservation book.

    [functions]
    module = "bridge.local_agent.restaurant"

The book is kept in memory and is lost when the server stops.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from bridge.functions import CallInfo, function

TABLES = {1: 2, 2: 2, 3: 4, 4: 4, 5: 6, 6: 8}  # number of the table: seats

Day = Literal[
    "today", "tomorrow", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"
]


class Book:
    """The reservations: table, day, time and name."""

    def __init__(self, tables: dict[int, int]) -> None:
        self._tables = sorted(tables.items(), key=lambda table: table[1])
        self._taken: dict[tuple[str, str, int], str] = {}

    def take(self, guests: int, time: str, day: str, name: str) -> int | None:
        """Reserve the smallest free table for `guests` people; None if there is none."""
        for table, seats in self._tables:
            if seats >= guests and (day, time, table) not in self._taken:
                self._taken[day, time, table] = name
                return table
        return None


_book = Book(TABLES)


@function(deadline=5, defer_until_eot=True)
async def book_table(
    guests: Annotated[int, "how many people"],
    time: Annotated[str, "24-hour clock, such as 19:30"],
    call: CallInfo,
    day: Day = "today",
    name: Annotated[str, "who books, if they said so"] = "",
) -> dict[str, Any]:
    """Book a table in the restaurant."""
    table = _book.take(guests, time, day, name or call.caller)
    if table is None:
        return {"error": f"no table for {guests} on {day} at {time}"}
    return {"table": table, "guests": guests, "time": time, "day": day}
