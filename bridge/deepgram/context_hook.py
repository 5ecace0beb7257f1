"""Ask the operator's context hook about a caller.

Before the agent begins, bridge POSTs the call's facts to `call.context_url`, once:

    POST  {"call_sid": "CA…", "caller": "+1…", "called": "+1…", "parameters": {…}}
    200   {"first_name": "Ada", "open_orders": 2, "member": true}

The greeting and the prompt may name the variables in the answer (`bridge.deepgram.template`). The
caller listens to silence meanwhile, so there is one try with one deadline, and a failure of the
hook never fails the call: the agent begins without the variables, and the log says why.

*Cancellation* closes the connection; nothing is left behind.
"""

from __future__ import annotations

import functools
import ssl
from typing import Final

import httpx
import msgspec
import trio

from bridge.caller import CallInfo
from bridge.log import get_logger
from bridge.transport.http_client import sockets_closed_on_failure

log = get_logger(__name__)

# The variables of one prompt fit in this many times over; a larger body is not a hook's answer.
MAX_ANSWER_BYTES: Final = 64 * 1024


class _UnusableError(Exception):
    """The hook's answer cannot be used. The message says why, in words for the log."""


async def fetch_context(
    url: str,
    info: CallInfo,
    timeout: float,
    client_transport: httpx.AsyncBaseTransport | None = None,
) -> dict[str, str]:
    """Ask the hook at `url` about one call and return the variables it answers with.

    Strings are returned unchanged, numbers as the hook wrote them, booleans as "true" and "false".
    Members of any other type are ignored; the log names them. If the hook fails, or its answer is
    not complete after `timeout` seconds, the result is empty and one warning is logged. Never
    raises an Exception. Redirects are not followed: they would send the call's facts elsewhere.

    `client_transport` replaces the network in tests.
    """
    try:
        with trio.fail_after(timeout):
            answer = await _ask(url, info, client_transport)
        context, ignored = _read(answer)
    except Exception as error:
        # The message of an error may contain the URL, and with it a password; its type does not.
        log.warning(
            "call.context_url: call continues without the hook's variables",
            reason=_reason(error, timeout),
        )
        return {}
    if ignored:
        log.warning(
            "call.context_url: ignored members that are not strings, numbers or booleans",
            keys=ignored,
        )
    return context


async def _ask(url: str, info: CallInfo, transport: httpx.AsyncBaseTransport | None) -> bytes:
    """Return the body of the hook's answer."""
    address = httpx.URL(url)
    facts = {
        "call_sid": info.call_sid,
        "caller": info.caller,
        "called": info.called,
        "parameters": dict(info.parameters),
    }
    # Credentials are taken out of the URL, because httpx logs the URL of every request.
    auth = httpx.BasicAuth(address.username, address.password) if address.userinfo else None
    client = httpx.AsyncClient(
        transport=transport,
        verify=await _tls(needed=address.scheme == "https" and transport is None),
        auth=auth,
        timeout=httpx.Timeout(
            None
        ),  # fail_after covers the exchange; httpx's restarts at each read
        follow_redirects=False,
        trust_env=False,  # like the agent's socket: no proxy from the environment
    )
    with sockets_closed_on_failure() as trace:
        async with (
            client,
            client.stream(
                "POST",
                address.copy_with(userinfo=b""),
                content=msgspec.json.encode(facts),
                # A few compressed bytes can expand to gigabytes.
                headers={"content-type": "application/json", "accept-encoding": "identity"},
                extensions={"trace": trace},
            ) as response,
        ):
            return await _body(response)


async def _body(response: httpx.Response) -> bytes:
    if not response.is_success:
        raise _UnusableError(f"answered with status {response.status_code}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _UnusableError("answered with a compressed body, although only identity was accepted")
    body = bytearray()
    # Breaking out of the loop would leave httpx's nested generators to the garbage collector, and
    # Trio warns about that; cancelling the next read closes them all.
    with trio.CancelScope() as reading:
        async for piece in response.aiter_bytes():
            if len(body) + len(piece) > MAX_ANSWER_BYTES:
                reading.cancel()
            else:
                body += piece
    if reading.cancel_called:
        raise _UnusableError(f"answered with more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _read(answer: bytes) -> tuple[dict[str, str], list[str]]:
    """Return the variables in the hook's answer, and the keys whose values cannot be variables."""
    context: dict[str, str] = {}
    ignored: list[str] = []
    try:
        # Raw, so that a price of 12.50 does not become 12.5.
        for key, raw in msgspec.json.decode(answer, type=dict[str, msgspec.Raw]).items():
            text = bytes(raw)
            if text.startswith(b'"'):
                context[key] = msgspec.json.decode(text, type=str)
            elif text.startswith((b"{", b"[", b"null")):
                ignored.append(key)
            else:
                context[key] = text.decode("ascii")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _UnusableError("did not answer with a JSON object") from None
    return context, ignored


async def _tls(*, needed: bool) -> ssl.SSLContext:
    if needed:
        return await trio.to_thread.run_sync(_trusting_the_system, abandon_on_cancel=True)
    # Unless it is given a context, httpx loads the certificates for every client, and blocks the
    # event loop for 20 ms. Without TLS any context will do; this one trusts no certificate.
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@functools.cache
def _trusting_the_system() -> ssl.SSLContext:
    """Load the system's certificates, once and in a thread: that takes the time of a frame."""
    return ssl.create_default_context()


def _reason(error: BaseException, timeout: float) -> str:
    match error:
        case trio.TooSlowError():
            return f"no complete answer within {timeout:g} seconds"
        case _UnusableError():
            return str(error)
        case httpx.ConnectError():
            return f"cannot connect: {type(_root(error)).__name__}"
        case httpx.InvalidURL() | httpx.UnsupportedProtocol():
            return "the URL does not begin with http:// or https://"
        case _:
            return type(error).__name__


def _root(error: BaseException) -> BaseException:
    """Return the original error, from the operating system or from TLS."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif cause := error.__cause__ or error.__context__:
            error = cause
        else:
            return error
