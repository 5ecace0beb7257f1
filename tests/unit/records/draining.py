"""Reading what a spool has."""

from __future__ import annotations

from bridge.records.spool import Spool


def drain(spool: Spool, count: int = 3) -> list[int]:
    """Take everything out of the spool, and return the number that each line begins with."""
    numbers = []
    while lines := spool.peek(count):
        numbers += [int(one.split()[0]) for one in lines]
        spool.advance()
    return numbers
