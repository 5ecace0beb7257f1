"""`bridge number`: points a Twilio number's voice webhook at this server."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar, Unpack
from urllib.parse import urlsplit

import click
import trio

from bridge.addresses import is_loopback
from bridge.cli.failure import Failure, Misconfigured
from bridge.config.file import config_path, load
from bridge.config.secrets import Secrets
from bridge.config.settings import ConfigError
from bridge.text import printable
from bridge.twilio.login import LoginOptions
from bridge.twilio.numbers import is_number
from bridge.twilio.rest import PhoneNumber, TwilioError, TwilioRest

WEBHOOK = "/incoming-call"
STATUS = "/call-status"

T = TypeVar("T")


@click.command()
@click.argument("number", metavar="+15551234567")
@click.option(
    "--url", default="", help="This server's public address, instead of server.public_url."
)
@click.option("--config", metavar="FILE", help="The configuration file, instead of config.toml.")
@click.option(
    "--fallback",
    metavar="URL",
    default="",
    help="TwiML for callers while this server cannot be reached, such as a TwiML Bin's.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def number(number: str, url: str, fallback: str, config: str | None, yes: bool) -> None:
    """Point a Twilio number's voice webhook at this server.

    Sets the number's status callback, too, by which the server learns of callers who hang up before
    they are connected. Shows what the number is connected to and asks before changing it. Needs
    TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN, or an API key, in the environment.
    """
    if not is_number(number):
        raise Misconfigured(
            f"{printable(number)}: expected a phone number such as +15551234567; write + and the "
            "country code, then digits only"
        )
    if config is not None:
        os.environ["BRIDGE_CONFIG"] = config
    try:
        address = _webhook(url or load(config_path()).server.public_url)
        wanted = Wanted(address, address.removesuffix(WEBHOOK) + STATUS, _fallback(fallback))
        secrets = Secrets.from_environment()
    except ConfigError as error:
        raise Misconfigured(str(error)) from None
    credentials = _credentials(secrets)
    try:
        found = _run(_find, credentials, number)
        if found is None:
            raise Failure(f"the account has no number {number}; see console.twilio.com")
        _show(found, wanted)
        if wanted.is_set(found):
            click.echo(f"{number} is already answered by {address}; nothing to do")
            return
        if found.trunk_sid:
            raise Failure(
                f"{number} belongs to SIP trunk {printable(found.trunk_sid)}, so Twilio uses "
                "no webhook; take it off the trunk in Twilio's console first"
            )
        if not yes:
            _ask(number)
        now = _run(_point, credentials, found.number_sid, wanted)
    except TwilioError as error:
        raise Failure(str(error)) from None
    except ValueError as error:
        raise Misconfigured(str(error)) from None
    if not wanted.is_set(now):
        raise Failure(f"Twilio accepted the change, but {number} is answered by {_answerer(now)}")
    click.echo(f"{number} is answered by {address}")


@dataclass(frozen=True)
class Wanted:
    """The addresses that a number is to have; an empty `fallback` leaves the present one."""

    webhook: str
    status: str
    fallback: str

    def is_set(self, found: PhoneNumber) -> bool:
        """Return whether a number has these addresses, and nothing takes precedence over them."""
        voice = (found.voice_url, found.voice_method.upper(), found.status_callback)
        return (
            voice == (self.webhook, "POST", self.status)
            and self.fallback in ("", found.voice_fallback_url)
            and not (found.application_sid or found.trunk_sid)
        )


def open_rest(account_sid: str, secret: str, **options: Unpack[LoginOptions]) -> TwilioRest:
    """Open Twilio's REST API. Tests replace this by a stand-in."""
    return TwilioRest(account_sid, secret, **options)


Credentials = tuple[str, str, LoginOptions]


def _credentials(secrets: Secrets) -> Credentials:
    login = secrets.twilio_login()
    if login is None:
        raise Misconfigured(
            "TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN must both be set; copy them from "
            "console.twilio.com"
        )
    return login


def _webhook(url: str) -> str:
    """Return the webhook's address at the server `url`, which may already include the path."""
    if not url:
        raise Misconfigured(
            "server.public_url: not set; set it, or give the public address with --url"
        )
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("https", "http") or not parts.hostname or not url.isprintable():
        raise Misconfigured("--url: expected an address such as https://voice.example.com")
    if is_loopback(parts.netloc) or parts.query or parts.fragment or "@" in parts.netloc:
        raise Misconfigured(
            "--url: expected this server's public address, without user name, ?query and "
            "#fragment; Twilio cannot reach a loopback address"
        )
    return url.rstrip("/").removesuffix(WEBHOOK) + WEBHOOK


def _fallback(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    usable = parts.scheme in ("https", "http") and parts.hostname and url.isprintable()
    if url and not usable:
        raise Misconfigured(
            "--fallback: expected the address of some TwiML, such as "
            "https://handler.twilio.com/twiml/EH…, a TwiML Bin's"
        )
    return url


async def _find(credentials: Credentials, number: str) -> PhoneNumber | None:
    account_sid, secret, options = credentials
    async with open_rest(account_sid, secret, **options) as rest:
        return await rest.find_number(number)


async def _point(credentials: Credentials, number_sid: str, wanted: Wanted) -> PhoneNumber:
    account_sid, secret, options = credentials
    async with open_rest(account_sid, secret, **options) as rest:
        return await rest.set_voice_webhook(
            number_sid, wanted.webhook, wanted.status, wanted.fallback or None
        )


def _run(work: Callable[..., Awaitable[T]], *arguments: object) -> T:
    try:
        return trio.run(work, *arguments)
    except BaseExceptionGroup as group:
        # Trio raises KeyboardInterrupt inside a group, beside the errors that it caused.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise click.Abort from None


def _answerer(found: PhoneNumber) -> str:
    if found.trunk_sid:
        return f"SIP trunk {printable(found.trunk_sid)}"
    if found.application_sid:
        return f"application {printable(found.application_sid)}"
    if found.voice_url:
        return f"{printable(found.voice_url)} ({printable(found.voice_method)})"
    return "nothing"


def _show(found: PhoneNumber, wanted: Wanted) -> None:
    name = f" ({printable(found.name)})" if found.name else ""
    click.echo(f"{found.number}{name}", err=True)
    click.echo(f"  now: {_answerer(found)}", err=True)
    click.echo(f"  new: {wanted.webhook} (POST)", err=True)
    for what, now, new in (
        ("status callback", found.status_callback, wanted.status),
        ("fallback", found.voice_fallback_url, wanted.fallback),
    ):
        if new and now != new:
            click.echo(f"  {what}: {printable(now) or 'none'} -> {new}", err=True)


def _ask(number: str) -> None:
    try:
        agreed = click.confirm(f"Change what answers {number}?", err=True)
    except click.Abort as error:
        if isinstance(error.__context__, EOFError):
            raise Misconfigured("cannot ask without a terminal; add --yes") from None
        raise
    if not agreed:
        raise Failure("nothing was changed")
