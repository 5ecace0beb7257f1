"""Checks this machine's clock against the Date header of other servers.

Certificates, tickets and records depend on the clock. https://www.rfc-editor.org/rfc/rfc9110#field.date
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from email.utils import parsedate_to_datetime

import httpx

from bridge.check.finding import Finding, ok, skipped, wrong
from bridge.transport.http_client import open_client

# A Date header has whole seconds, and a proxy may return a slightly older one.
TOLERANCE_SECONDS = 30.0
ANSWER_SECONDS = 8.0


def skew(date: str, asked_at: float, answered_at: float) -> float | None:
    """Return how many seconds our clock is ahead of the one that wrote `date`; None without one.

    `asked_at` and `answered_at` are our clock's seconds since 1970. The header was written between
    them; the uncertainty counts in favour of our clock.
    """
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None
    if asked_at > theirs + 1:
        return asked_at - theirs - 1
    return min(0.0, answered_at - theirs)


async def check_clock(urls: Sequence[str]) -> Iterable[Finding]:
    """Compare with the first of `urls` that answers."""
    for url in urls:
        asked_at = time.time()
        try:
            async with open_client(timeout=ANSWER_SECONDS) as client:
                answer = await client.get(url)
        except httpx.HTTPError:
            continue  # another check reports that it is unreachable
        ahead = skew(answer.headers.get("Date", ""), asked_at, time.time())
        if ahead is not None:
            return [judge(ahead, httpx.URL(url).host)]
    return [skipped("clock", "no remote server to compare this machine's clock with")]


def judge(ahead: float, host: str) -> Finding:
    """Judge being `ahead` seconds ahead of a host's clock."""
    if abs(ahead) <= TOLERANCE_SECONDS:
        return ok("clock", f"agrees with the clock of {host}")
    side = "ahead of" if ahead > 0 else "behind"
    return wrong(
        "clock",
        f"this machine's clock is {abs(ahead):.0f} s {side} that of {host}",
        "certificates, tickets and records depend on it",
        "synchronise it with NTP (`timedatectl set-ntp true`)",
    )
