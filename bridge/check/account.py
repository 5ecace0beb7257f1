"""Checks the Twilio account: the credentials, and where a number's calls go."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bridge.check.finding import Finding, ok, skipped, warning, wrong
from bridge.config.secrets import Secrets
from bridge.config.settings import Settings
from bridge.twilio.login import login_names
from bridge.twilio.rest import (
    API_URL,
    PhoneNumber,
    TwilioError,
    TwilioRest,
    TwilioUnreachable,
)

# Twilio's test number, which no account owns: looking it up shows whether the credentials work.
# https://www.twilio.com/docs/iam/test-credentials#test-calls
UNOWNED_NUMBER = "+15005550006"

OpenRest = Callable[..., TwilioRest]


async def check_account(
    secrets: Secrets, settings: Settings, number: str, open_rest: OpenRest = TwilioRest
) -> Iterable[Finding]:
    """Look up `number` through Twilio's REST API, or a number that no account owns."""
    login = secrets.twilio_login()
    if login is None:
        return _without(secrets, settings, number)
    account_sid, secret, options = login
    try:
        async with open_rest(account_sid, secret, **options) as rest:
            found = await rest.find_number(number or UNOWNED_NUMBER)
    except ValueError as error:
        return [wrong("twilio", "the credentials are malformed", str(error))]
    except TwilioUnreachable as error:
        return [
            wrong(
                "twilio",
                "Twilio's REST API cannot be reached",
                error.message,
                f"allow this machine to connect to {options.get('base_url', API_URL)}",
            )
        ]
    except TwilioError as error:
        return [wrong("twilio", "Twilio rejects the credentials", str(error))]
    good = ok("twilio", f"Twilio accepts {login_names(secrets.twilio_api_key)}")
    if not number:
        return [good]
    return [good, judge_number(number, found, settings.server.public_url)]


def judge_number(number: str, found: PhoneNumber | None, public_url: str) -> Finding:
    """Judge whether calls to the account's `number` reach the server at `public_url`."""
    if found is None:
        return wrong(
            "number",
            f"the account has no number {number}",
            remedy="see console.twilio.com for the numbers it has",
        )
    address = f"{public_url}/incoming-call" if public_url else ""
    remedy = f"`bridge number {number}` points it here"
    if not public_url:
        remedy += " once server.public_url is set"
    if found.trunk_sid:
        return wrong(
            "number",
            f"{number} is on SIP trunk {found.trunk_sid}",
            "Twilio then calls no webhook",
            "take it off the trunk in Twilio's console",
        )
    if found.application_sid:
        return wrong(
            "number", f"{number} is answered by application {found.application_sid}", remedy=remedy
        )
    if not found.voice_url:
        return wrong("number", f"{number} has no voice webhook", remedy=remedy)
    if not address:
        return warning(
            "number",
            f"{number} is answered by {found.voice_url}",
            "it is unknown whether that is this server",
            "set server.public_url",
        )
    if found.voice_url != address:
        return wrong(
            "number",
            f"{number} is answered by {found.voice_url}",
            f"this server's webhook is {address}",
            remedy,
        )
    if found.status_callback != f"{public_url}/call-status":
        return warning(
            "number",
            f"{number} is answered by {address}, but its status callback is "
            f"{found.status_callback or 'not set'}",
            "a caller who hangs up at once then keeps a line for some seconds",
            remedy,
        )
    return ok("number", f"{number} is answered by {address}")


def _without(secrets: Secrets, settings: Settings, number: str) -> list[Finding]:
    missing = [
        name
        for name, value in (
            ("TWILIO_ACCOUNT_SID", secrets.twilio_account_sid),
            ("TWILIO_AUTH_TOKEN", secrets.twilio_auth_tokens),
        )
        if not value
    ]
    what = f"{' and '.join(missing)}: not set"
    remedy = "copy them from console.twilio.com to check signatures, dial out and transfer"
    signed_by = secrets.twilio_auth_tokens or secrets.twilio_signing_keys
    if settings.twilio.validate_signatures and not signed_by:
        return [
            wrong(
                "twilio",
                "the server does not start: TWILIO_AUTH_TOKEN is not set",
                "without it Twilio's requests cannot be told from forged ones",
                "copy it from console.twilio.com; to try without Twilio, set"
                " twilio.validate_signatures = false",
            )
        ]
    if number:
        return [wrong("number", f"{number} cannot be looked up", what, remedy)]
    return [skipped("twilio", what, remedy)]
