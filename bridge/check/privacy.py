"""Says where Deepgram processes calls, and whether it keeps their audio.

https://developers.deepgram.com/trust-security/your-data,
https://developers.deepgram.com/reference/regional-endpoints
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

import trio

from bridge.check.finding import Finding, agent_name, ok, warning
from bridge.config.settings import Settings

_REGIONS = {"eu": "the EU", "au": "Australia", "in": "India"}


async def check_privacy(settings: Settings) -> Iterable[Finding]:
    """Return one finding for the agents that are opted out, and one for those that are not. None
    for an agent that is not Deepgram's."""
    await trio.lowlevel.checkpoint()
    host = urlsplit(settings.deepgram.url).hostname or ""
    if not host.endswith(".deepgram.com"):
        return []
    match = re.fullmatch(r"api\.(eu|au|in)\.deepgram\.com", host)
    region = _REGIONS[match[1]] if match else ""
    agents: dict[bool, list[str]] = {True: [], False: []}
    for name in ("", *settings.agents):
        out = settings.for_agent(name).deepgram.settings.get("mip_opt_out") is True
        agents[out].append(agent_name(name))
    return [_finding(out, names, region) for out, names in agents.items() if names]


def _finding(opted_out: bool, names: list[str], region: str) -> Finding:
    calls = f"calls of {', '.join(names)}"
    if opted_out:
        where = f", and processes them in {region}" if region else ", in any region"
        return ok("privacy", f"Deepgram keeps nothing of {calls}{where}")
    kept = f"Deepgram keeps audio and transcripts of {calls} to improve its models"
    remedy = "set mip_opt_out = true in [deepgram.settings] to opt out"
    if region:
        return warning("privacy", kept, f"so they may leave {region}", remedy)
    return ok("privacy", f"{kept}; {remedy}")
