"""Checks the server as Twilio uses it: public address, webhook, signature, media socket.

In this order, because each step needs the one before. The only trace is a call in the server's log
that ended before it started.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx

from bridge.addresses import host_here, is_loopback
from bridge.check.finding import Finding, ok, skipped, wrong
from bridge.check.probe import ANSWER_SECONDS, NoAnswer, get, post
from bridge.check.webhook import judge_twiml
from bridge.config.secrets import Secrets
from bridge.config.settings import Settings
from bridge.testing.phone.media_socket import StreamRefusedError, open_media_socket
from bridge.testing.phone.twiml import ConnectStream, TwimlError, dialled_address
from bridge.testing.phone.webhook import open_network_stream, sign
from bridge.transport.http_client import open_client

WEBHOOK: Final = "/incoming-call"

# Answers to a request that Twilio has not signed.
REFUSED: Final = (401, 403)

# One connection per request: a persistent one stays with one worker process, and some proxies
# look at its first request only.
_AFRESH: Final = httpx.Limits(max_keepalive_connections=0)


@dataclass(frozen=True)
class ServerAddress:
    """The address that Twilio calls: `webhook` in full; `base` is "" for a foreign path."""

    base: str
    webhook: str

    @classmethod
    def of(cls, url: str) -> ServerAddress:
        """Parse the address of a server or of a webhook."""
        url = url.rstrip("/")
        if url.endswith(WEBHOOK):
            return cls(url.removesuffix(WEBHOOK), url)
        parts = urlsplit(url)
        return cls("", url) if parts.path or parts.query else cls(url, url + WEBHOOK)


async def check_server(settings: Settings, secrets: Secrets, url: str = "") -> list[Finding]:
    """Check the server at `url`, or at server.public_url if that is empty."""
    here = local_address(settings.server.bind)
    async with (
        # This machine is reached without the HTTP proxy that other hosts may need.
        open_client(timeout=ANSWER_SECONDS, limits=_AFRESH, trust_env=False) as inside,
        open_client(timeout=ANSWER_SECONDS, limits=_AFRESH) as client,
    ):
        findings, instance = await _check_here(inside, here)
        public = url or settings.server.public_url
        if public:
            address = ServerAddress.of(public)
            if address.base:
                there, reached = await _check_there(client, address.base, here, instance)
                findings += there
                if not reached:
                    return findings
                findings.append(await _check_operators(client, address.base))
        elif instance:
            address, client = ServerAddress.of(here), inside
            findings.append(
                skipped(
                    "public",
                    "server.public_url is not set: checked on this machine only",
                    "set it, or give the address with --url: without it, signatures are checked "
                    "against the Host of the request, and one that another server of your account "
                    "was sent would do here, too",
                )
            )
        else:
            return findings
        findings += await _check_calls(client, address, settings, secrets)
    return findings


def local_address(bind: str) -> str:
    """Return the URL on this machine of a server bound to `bind`."""
    return f"http://{host_here(bind)}"


async def _check_here(client: httpx.AsyncClient, here: str) -> tuple[list[Finding], str]:
    """Look for a bridge on this machine; return its instance name, "" if there is none."""
    remedy = "start it with `bridge serve`"
    if here.endswith(":0"):
        return [skipped("server", "server.bind has port 0: not checked")], ""
    try:
        answer = await get(client, f"{here}/healthz", "server")
    except NoAnswer:
        return [skipped("server", f"no server runs at {here}", remedy)], ""
    if not answer.instance:
        who = f"a server that calls itself {answer.server}" if answer.server else "something else"
        return [
            wrong(
                "server",
                f"{here} is answered by {who}, not by bridge",
                "the port of server.bind is in use",
                "stop that program, or choose another port in server.bind",
            )
        ], ""
    return [ok("server", f"bridge runs at {here}")], answer.instance


async def _check_there(
    client: httpx.AsyncClient, base: str, here: str, instance: str
) -> tuple[list[Finding], bool]:
    """Whether the public address reaches a bridge, and the one of this machine."""
    try:
        answer = await get(client, f"{base}/healthz", "public")
    except NoAnswer as error:
        return [error.finding], False
    if answer.status != 200 or not answer.instance:
        what = f"{base} reaches no bridge"
        why = f"/healthz answered {answer.status}"
        if answer.server:
            why += f" from a server that calls itself {answer.server}"
        remedy = f"point the tunnel or proxy at {here}"
        return [wrong("public", what, why, remedy)], False
    if not instance:
        return [ok("public", f"{base} reaches a bridge (none runs here to compare with)")], True
    if answer.instance != instance:
        return [
            wrong(
                "public",
                f"{base} reaches another bridge than the one at {here}",
                f"it is {answer.instance[:16]}, and this one is {instance}",
                f"point the tunnel or proxy at {here}; with several machines behind one address,"
                " run `bridge check` on each with --url",
            )
        ], True
    return [ok("public", f"{base} reaches this server")], True


async def _check_operators(client: httpx.AsyncClient, base: str) -> Finding:
    """Check that a stranger can neither list calls nor place any."""
    try:
        answer = await get(client, f"{base}/calls", "operators")
    except NoAnswer as error:
        return error.finding
    if 200 <= answer.status < 300:
        return wrong(
            "operators",
            f"{base}/calls answers {answer.status} without a token",
            "anyone who finds it can read, place and end calls",
            "set BRIDGE_API_TOKEN, restart the server, and have no proxy add the token by itself",
        )
    return ok("operators", f"{base} shows calls to nobody without the API token")


# ---- a call as far as its media socket -----------------------------------------------------------


async def _check_calls(
    client: httpx.AsyncClient, address: ServerAddress, settings: Settings, secrets: Secrets
) -> list[Finding]:
    url = address.webhook
    token = secrets.twilio_auth_tokens[0] if secrets.twilio_auth_tokens else ""
    findings: list[Finding] = []
    try:
        answer = await post(client, url, url if token else "", token)
        if answer.status in REFUSED and token:
            return [await _explain_mismatch(client, url, settings, token)]
        if answer.status in REFUSED:
            return [
                skipped(
                    "signature",
                    f"{url} requires Twilio's signature",
                    "set TWILIO_AUTH_TOKEN here, too, to check it as Twilio does",
                )
            ]
        if token and address.base:
            findings.append(await _check_unsigned(client, url))
        elif address.base and not is_loopback(urlsplit(url).netloc):
            findings.append(_open_to_all(url, "set TWILIO_AUTH_TOKEN for the server"))
    except NoAnswer as error:
        return [*findings, error.finding]
    if answer.status != 200:
        return [
            *findings,
            wrong(
                "webhook",
                f"{url} answers {answer.status} to Twilio",
                "a voice webhook answers 200 and TwiML",
                "see the server's log; the path is /incoming-call",
            ),
        ]
    finding, stream = judge_twiml(answer.body, answer.content_type, url)
    findings.append(finding)
    if stream is not None and finding.status == "ok" and address.base:
        findings.append(await _check_socket(stream, address.base, token))
    return findings


async def _check_unsigned(client: httpx.AsyncClient, url: str) -> Finding:
    """Check that unsigned requests are rejected."""
    answer = await post(client, url, "", "")
    if answer.status == 403:
        return ok("signature", f"{url} accepts only requests signed by Twilio")
    if is_loopback(urlsplit(url).netloc):
        return ok(
            "signature", f"{url} accepts requests signed by Twilio (and, on this machine, any)"
        )
    return _open_to_all(url, "set twilio.validate_signatures = true, and restart the server")


def _open_to_all(url: str, remedy: str) -> Finding:
    return wrong(
        "signature",
        f"{url} accepts unsigned requests",
        "anyone who finds it can talk to the agent at your expense",
        remedy,
    )


async def _explain_mismatch(
    client: httpx.AsyncClient, url: str, settings: Settings, token: str
) -> Finding:
    """Find the address for which the server checks signatures, by signing for likely ones."""
    for computed in likely_addresses(url, settings.server.bind):
        answer = await post(client, url, computed, token)
        if answer.status not in REFUSED:
            base = url.removesuffix(WEBHOOK)
            return wrong(
                "signature",
                f"{url}: the server checks Twilio's signature for {computed}",
                "a proxy changes the Host header or ends TLS",
                f'set server.public_url = "{base}" for the server',
            )
    return wrong(
        "signature",
        f"{url} rejects requests signed with TWILIO_AUTH_TOKEN",
        "the server has another token, or checks signatures for another address",
        "set the same TWILIO_AUTH_TOKEN for both; set server.public_url for the server",
    )


def likely_addresses(url: str, bind: str) -> Iterator[str]:
    """Yield what `url` may look like to a server behind a proxy: other schemes, hosts, ports."""
    parts = urlsplit(url)
    port = bind.rpartition(":")[2]
    inner = local_address(bind).partition("://")[2]
    hosts = [parts.netloc, inner, f"localhost:{port}", f"127.0.0.1:{port}"]
    # Without a port last: some servers treat both alike, and one with a port says more.
    hosts += [f"{parts.hostname}:{p}" for p in (port, 443, 80)]
    hosts += [parts.hostname or "", "localhost", "127.0.0.1"]
    seen = {url}
    for host in dict.fromkeys(hosts):
        for scheme in ("http", "https"):
            computed = _with_host(url, scheme, host)
            if computed not in seen:
                seen.add(computed)
                yield computed


def _with_host(url: str, scheme: str, host: str) -> str:
    """Return `url` with another scheme and authority."""
    return urlsplit(url)._replace(scheme=scheme, netloc=host).geturl()


async def _check_socket(stream: ConnectStream, base: str, token: str) -> Finding:
    headers = [(b"User-Agent", b"Twilio.TmeWs/1.0")]
    if token:
        signed = "wss" + stream.url[stream.url.index("://") :]
        headers.append((b"X-Twilio-Signature", sign(signed, (), token).encode()))
    try:
        address, _ = dialled_address(stream.url, base)
        async with open_media_socket(address, headers, open_network_stream):
            pass
    except TwimlError as error:
        return wrong("socket", f"Twilio would not open {stream.url}", error.detail)
    except StreamRefusedError as error:
        remedy = "have the proxy pass on websockets (the Upgrade and Connection headers)"
        if "answered 403" in error.detail:
            remedy = "set server.public_url for the server: the socket's signature is for its wss"
        return wrong("socket", f"{stream.url} does not open", error.detail, remedy)
    return ok("socket", f"{stream.url} opens")
