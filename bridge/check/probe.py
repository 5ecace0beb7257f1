"""HTTP requests to a server as Twilio or a browser sends them, and the findings of failed ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode, urlsplit

import httpx

from bridge.check.connect_error import connect_error
from bridge.check.finding import Finding, wrong
from bridge.server.instance import HEADER
from bridge.testing.phone.webhook import sign, voice_form

ANSWER_SECONDS: Final = 8.0

# "c4ec4" reads as "check" in the server's log.
_CALL_SID: Final = "CA" + "0" * 24 + "c4ec4000"
_ACCOUNT_SID: Final = "AC" + "0" * 32


@dataclass(frozen=True)
class ProbeAnswer:
    """An HTTP answer; `instance` identifies the bridge that sent it, "" for another server."""

    status: int
    body: bytes
    content_type: str
    instance: str
    server: str


class NoAnswer(Exception):
    """There was no answer; the finding says why."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding


async def get(client: httpx.AsyncClient, url: str, check: str) -> ProbeAnswer:
    """GET a page; `check` names the check in a finding. Raises NoAnswer."""
    with _reaching(url, check):
        return _answer(await client.get(url))
    raise AssertionError("unreachable")


async def post(client: httpx.AsyncClient, url: str, signed: str, token: str) -> ProbeAnswer:
    """POST to a webhook as Twilio does, signed for the address `signed` unless that is empty.

    Raises NoAnswer.
    """
    form = voice_form(
        call_sid=_CALL_SID,
        account_sid=_ACCOUNT_SID,
        from_number="+15550100001",
        to_number="+15550100002",
        caller_name=None,
        call_status="ringing",
    )
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "User-Agent": "TwilioProxy/1.1",
    }
    if signed:
        headers["X-Twilio-Signature"] = sign(signed, form, token)
    with _reaching(url, "webhook"):
        return _answer(await client.post(url, content=urlencode(form), headers=headers))
    raise AssertionError("unreachable")


def _answer(answer: httpx.Response) -> ProbeAnswer:
    headers = answer.headers
    return ProbeAnswer(
        answer.status_code,
        answer.content,
        headers.get("Content-Type", ""),
        headers.get(HEADER, ""),
        headers.get("Server", "")[:80],
    )


@contextmanager
def _reaching(url: str, check: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NoAnswer(_explain(error, url, check)) from None


def _explain(error: Exception, url: str, check: str) -> Finding:
    host = urlsplit(url).netloc
    found = connect_error(error)
    match found.kind:
        case "certificate":
            what = f"the certificate of {host} is not trusted"
            remedy = "Twilio rejects it, too: get one from an authority such as Let's Encrypt"
        case "tls":
            what = f"{host} does not speak TLS"
            remedy = "put a proxy with TLS in front, or use `bridge serve --tunnel`"
        case "name":
            what = f"the name {host} cannot be resolved"
            remedy = "correct server.public_url, or the name's DNS record"
        case "refused":
            what = f"nothing listens at {host}"
            remedy = "start the tunnel or proxy, or correct server.public_url"
        case "other":
            what = f"{host} does not answer"
            remedy = "check that it is this server's and reachable from the internet"
            if isinstance(error, httpx.TimeoutException):
                found = replace(found, why=f"no answer within {ANSWER_SECONDS:g} s")
    return wrong(check, what, found.why, remedy)
