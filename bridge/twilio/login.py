"""Where Twilio's REST API is, and what logs in there."""

from __future__ import annotations

from typing import TypedDict


class LoginOptions(TypedDict, total=False):
    """What `TwilioRest` is given besides the account's SID and a secret."""

    api_key: str
    base_url: str


def api_url(region: str = "", edge: str = "") -> str:
    """Return the address of Twilio's REST API in a region, through an edge location.

    An edge alone is one of the region us1.
    https://www.twilio.com/docs/global-infrastructure/api-domains-for-twilio-products
    """
    parts = ["api", edge, region or (edge and "us1"), "twilio.com"]
    return f"https://{'.'.join(part for part in parts if part)}"


def login_names(api_key: str = "") -> str:
    """Return the names of the variables that the REST client logs in with."""
    if api_key:
        return "TWILIO_API_KEY and TWILIO_API_SECRET"
    return "TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN"
