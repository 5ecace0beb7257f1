"""The context hook: a server of the operator's that knows more about a caller than the network.

Before the agent begins, `call.context_url` is asked, once, with the call's facts:

    POST  {"call_sid": "CA…", "caller": "+1…", "called": "+1…", "parameters": {…}}
    200   {"first_name": "Ada", "open_orders": 2, "member": true}

What it answers may be named in greeting and prompt (`bridge.deepgram.agents`). The caller is
listening to silence meanwhile, so there is one try and one deadline, and no failure of the hook is
a failure of the call: the agent begins without the variables, and the log says why.

*Cancelling* it closes the connection; nothing is left behind.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx
import msgspec
import trio

from bridge.caller import CallInfo
from bridge.log import get_logger

log = get_logger(__name__)

# Variables for one prompt fit many times over; whatever is larger is not an answer to us.
MAX_ANSWER_BYTES: Final = 64 * 1024


class _UnusableError(Exception):
    """What is wrong with the hook's answer, in words for the log."""


async def fetch_context(
    url: str,
    info: CallInfo,
    timeout: float,
    client_transport: httpx.AsyncBaseTransport | None = None,
) -> dict[str, str]:
    """Ask the hook at `url` about one call and return the variables it answers with.

    Texts come as they are, numbers as the hook wrote them, true and false by name. Members of any
    other kind are ignored; the log names them. A hook that cannot be used for whatever reason, or
    whose answer is not complete after `timeout` seconds, gives no variables and one warning. Never
    raises an Exception. Redirects are not followed: they would take the call's facts elsewhere.

    `client_transport` replaces the network, for tests.
    """
    try:
        with trio.fail_after(timeout):
            answer = await _ask(url, info, client_transport)
        context, ignored = _read(answer)
    except Exception as error:
        # The words of an error may hold the address, and with it a password; its name does not.
        log.warning(
            "call.context_url: this call goes on without its variables",
            reason=_reason(error, timeout),
        )
        return {}
    if ignored:
        log.warning("call.context_url: no text, number or truth value, ignored", keys=ignored)
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
    # Out of the address, since httpx logs the address of every request.
    auth = httpx.BasicAuth(address.username, address.password) if address.userinfo else None
    client = httpx.AsyncClient(
        transport=transport,
        verify=await _tls(needed=address.scheme == "https" and transport is None),
        auth=auth,
        timeout=httpx.Timeout(None),  # ours covers it all; httpx's begins anew with every read
        follow_redirects=False,
        trust_env=False,  # the agent's socket takes no proxy from the environment either
    )
    with _sockets_closed() as trace:
        async with (
            client,
            client.stream(
                "POST",
                address.copy_with(userinfo=b""),
                content=msgspec.json.encode(facts),
                # A few compressed bytes can be gigabytes.
                headers={"content-type": "application/json", "accept-encoding": "identity"},
                extensions={"trace": trace},
            ) as response,
        ):
            return await _body(response)


async def _body(response: httpx.Response) -> bytes:
    if not response.is_success:
        raise _UnusableError(f"answered with status {response.status_code}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _UnusableError("answered compressed, which was not asked for")
    body = bytearray()
    # Leaving the loop would leave httpx's generators, one in the other, to the garbage collector,
    # which Trio warns of; cancelling the next read ends them all.
    with trio.CancelScope() as reading:
        async for piece in response.aiter_bytes():
            if len(body) + len(piece) > MAX_ANSWER_BYTES:
                reading.cancel()
            else:
                body += piece
    if reading.cancel_called:
        raise _UnusableError(f"answered with more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


@contextmanager
def _sockets_closed() -> Iterator[Callable[[str, dict[str, Any]], Awaitable[None]]]:
    """Closes, at its end, what httpcore 1.0 forgets: the socket of a TLS handshake that was
    cancelled. What is closed already stays closed.

    https://www.python-httpx.org/advanced/extensions/#trace
    """
    sockets: list[Any] = []

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            sockets.append(info["return_value"].get_extra_info("socket"))

    try:
        yield trace
    finally:
        for socket in sockets:
            socket.close()


def _read(answer: bytes) -> tuple[dict[str, str], list[str]]:
    """The variables in the hook's answer, and the keys of what cannot be one."""
    context: dict[str, str] = {}
    ignored: list[str] = []
    try:
        # Raw, because a price of 12.50 shall not become 12.5 on its way.
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
    # httpx reads the certificates for every client, 20 ms in which no call's audio moves, unless
    # it is given a context. Without TLS any will do; this one trusts nobody.
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@functools.cache
def _trusting_the_system() -> ssl.SSLContext:
    """Once, and in a thread: reading the certificates takes as long as a frame of audio."""
    return ssl.create_default_context()


def _reason(error: BaseException, timeout: float) -> str:
    match error:
        case trio.TooSlowError():
            return f"no whole answer within {timeout:g} seconds"
        case _UnusableError():
            return str(error)
        case httpx.ConnectError():
            return f"cannot connect: {type(_root(error)).__name__}"
        case httpx.InvalidURL() | httpx.UnsupportedProtocol():
            return "not an address that begins http:// or https://"
        case _:
            return type(error).__name__


def _root(error: BaseException) -> BaseException:
    """What the operating system, or TLS, said in the first place."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif cause := error.__cause__ or error.__context__:
            error = cause
        else:
            return error
