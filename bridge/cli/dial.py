"""`bridge dial`: has a running bridge place a call."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import click
import httpx
import trio

from bridge.addresses import is_loopback
from bridge.cli.failure import Failure, Misconfigured
from bridge.config.secrets import Secrets
from bridge.config.settings import ConfigError
from bridge.server.kept_token import kept_token
from bridge.text import printable
from bridge.transport.http_client import open_client
from bridge.twilio.call_status import TERMINAL
from bridge.twilio.numbers import EXPECTED_TARGET, is_target

# Longer than the bridge itself waits for Twilio, so that its own error arrives first.
ANSWER_SECONDS = 15.0

POLL_SECONDS = 1.0

# A bridge that fails to answer may be busy or restarting; after this many polls it counts as gone.
MISSED_ANSWERS = 5

_STATUS_WORDS = {
    "busy": "the line is busy",
    "no-answer": "no one answered",
    "failed": "the call failed; is the number right?",
    "canceled": "the call was cancelled before it was answered",
}


@click.command()
@click.argument("target", metavar="+15551234567")
@click.option("--from", "from_", metavar="+1555…", default="", help="The number to call from.")
@click.option(
    "--var",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable for prompt and greeting; may be repeated.",
)
@click.option("--agent", default="", help="The agent to use: NAME of [agents.NAME].")
@click.option(
    "--timeout", type=click.IntRange(1, 600), help="How long it may ring, in seconds. [default: 60]"
)
@click.option("--send-digits", default="", help="Keys to press once it is answered, e.g. W1234#.")
@click.option(
    "--machine-detection",
    type=click.Choice(["Enable", "DetectMessageEnd"]),
    help="Let Twilio find out who answers before the agent speaks; with DetectMessageEnd it waits"
    " for a machine's own greeting to end.",
)
@click.option(
    "--machine-detection-timeout",
    type=click.IntRange(3, 59),
    help="How long that may take, in seconds. [default: 30]",
)
@click.option(
    "--on-machine",
    type=click.Choice(["hang_up", "message", "stay"]),
    help="What a machine gets: nothing, --message, or the agent. [default: hang_up, or message]",
)
@click.option("--message", default="", help="A message for an answering machine.")
@click.option("--call-reason", default="", help="Shown to the called party, where that works.")
@click.option("--record", is_flag=True, help="Let Twilio record the call.")
@click.option("--fallback-url", default="", help="The address of TwiML for when bridge fails.")
@click.option("--async-amd", is_flag=True, help="Detect a machine while the agent speaks already.")
@click.option("--url", default="http://127.0.0.1:5000", show_default=True, help="The bridge.")
@click.option("--wait", is_flag=True, help="Wait until the call has ended.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def dial(
    target: str,
    from_: str,
    variables: tuple[str, ...],
    url: str,
    wait: bool,
    as_json: bool,
    **options: object,
) -> int:
    """Place an outbound call through a running bridge: to a number, sip:name@host or client:name.

    Prints the call's SID. Set BRIDGE_API_TOKEN to the server's; a bridge that you run on this
    machine without one needs none. With --wait the exit code is 1 unless the call was answered;
    Ctrl-C then stops waiting, and the call goes on.
    """
    for given in (target, from_):
        if given and not is_target(given):
            raise Misconfigured(f"{printable(given)}: {EXPECTED_TARGET}")
    _check_url(url)
    try:
        token = Secrets.from_environment().api_token or kept_token(url)
    except ConfigError as error:
        raise Misconfigured(str(error)) from None
    request: dict[str, Any] = {"to": target, "variables": _variables(variables)}
    request |= {name: value for name, value in {"from": from_, **options}.items() if value}
    return trio.run(_until_interrupted, url.rstrip("/"), token, request, wait, as_json)


def _check_url(url: str) -> None:
    try:
        # Each parser rejects malformed URLs that the other accepts.
        usable = urlsplit(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable:
        raise Misconfigured(
            f"--url {printable(url)}: expected an address that begins http:// or https://"
        )


async def _until_interrupted(
    url: str, token: str, request: Mapping[str, Any], wait: bool, as_json: bool
) -> int:
    code = 130
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def listen() -> None:
                await anext(aiter(signals))
                nursery.cancel_scope.cancel(reason="Ctrl-C")

            failure: Failure | None = None
            try:
                await _dial(url, token, request, wait, as_json)
                code = 0
            except Failure as error:
                failure = error  # raised below, outside the nursery's exception group
            nursery.cancel_scope.cancel(reason="done")
    if failure is not None:
        raise failure
    return code


async def _dial(
    url: str, token: str, request: Mapping[str, Any], wait: bool, as_json: bool
) -> None:
    async with connect(url, token) as client:
        placed = await _ask(client, "POST", "/calls", request)
        call_sid = str(placed.get("call_sid", ""))
        if not wait:
            _print(placed, as_json)
            return
        click.echo(f"{call_sid} {placed.get('status', '')}", err=True)
        call = await _watch(client, placed)
    _print(call, as_json)
    if why := _STATUS_WORDS.get(str(call.get("status"))):
        raise Failure(why)


def connect(url: str, token: str) -> httpx.AsyncClient:
    """Return a client of the control API at `url`. Tests replace this by one without sockets."""
    return open_client(
        base_url=url,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=ANSWER_SECONDS,
        # A server on this machine is reached without the HTTP proxy for other hosts.
        trust_env=not is_loopback(urlsplit(url).netloc),
    )


async def _watch(client: httpx.AsyncClient, placed: dict[str, Any]) -> dict[str, Any]:
    """Print each new status until the call has ended; return the last answer."""
    call, missed = placed, 0
    while call.get("status") not in TERMINAL or call.get("live"):
        await trio.sleep(POLL_SECONDS)
        try:
            seen = await _ask(client, "GET", f"/calls/{placed['call_sid']}")
        except _NoAnswer as error:
            missed += 1
            if missed >= MISSED_ANSWERS:
                raise Failure(f"{error}; the call may still be live") from None
            continue
        missed = 0
        if seen.get("status") != call.get("status"):
            click.echo(f"{placed['call_sid']} {seen.get('status')}", err=True)
        call = seen
    return call


class _NoAnswer(Failure):
    """The bridge could not be reached."""


async def _ask(
    client: httpx.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    url = str(client.base_url).rstrip("/")
    try:
        with trio.fail_after(ANSWER_SECONDS):
            response = await client.request(method, path, json=body)
    except trio.TooSlowError:
        raise _NoAnswer(f"{url} did not answer within {ANSWER_SECONDS:g} seconds") from None
    except httpx.HTTPError as error:
        why = printable(str(error)) or type(error).__name__
        raise _NoAnswer(f"cannot reach {url} ({why}): is `bridge serve` running?") from None
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise Failure(
            f"{url} is not a bridge: it answered HTTP {response.status_code} without JSON"
        )
    if response.is_success:
        return answer
    raise Failure(printable(str(answer.get("error", f"HTTP {response.status_code}"))))


def _variables(given: tuple[str, ...]) -> dict[str, str]:
    variables = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise Misconfigured(f"--var {printable(pair)}: write NAME=VALUE")
        variables[name] = value
    return variables


def _print(call: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(call, ensure_ascii=False))
    else:
        seconds = f" {call['seconds']} s" if "seconds" in call else ""
        click.echo(printable(f"{call.get('call_sid', '')} {call.get('status', '')}{seconds}"))
    sys.stdout.flush()
