"""Judges a voice webhook's TwiML as Twilio reads it. Sans-I/O.

https://www.twilio.com/docs/voice/twiml/stream
"""

from __future__ import annotations

from urllib.parse import urlsplit
from xml.etree import ElementTree

from bridge.addresses import is_loopback
from bridge.check.finding import Finding, ok, warning, wrong
from bridge.testing.phone.twiml import ConnectStream, Say, TwimlError, read_twiml


def judge_twiml(body: bytes, content_type: str, url: str) -> tuple[Finding, ConnectStream | None]:
    """Judge what `url` answered; return also the stream that the call is connected to, if any."""
    if _starts_a_stream(body):
        return (
            wrong(
                "webhook",
                f"{url} answers <Start><Stream>",
                "that stream is one-way: the caller would never hear the agent",
                "answer <Connect><Stream>, as bridge's /incoming-call does",
            ),
            None,
        )
    try:
        verbs = read_twiml(body, content_type, url)
    except TwimlError as error:
        return (
            wrong(
                "webhook",
                f"Twilio would reject the answer of {url}",
                f"error {error.code}, {error.detail}",
                "point the number at bridge's /incoming-call",
            ),
            None,
        )
    for verb in verbs:
        if isinstance(verb, ConnectStream):
            return _judge_stream(verb, url), verb
    words = next((verb.text for verb in verbs if isinstance(verb, Say)), "")
    if words:
        return warning("webhook", f"{url} takes no calls now", f"it says “{words}”"), None
    return (
        wrong(
            "webhook",
            f"{url} does not connect calls to an agent",
            "its TwiML has no <Connect><Stream>",
            "point the number at bridge's /incoming-call",
        ),
        None,
    )


def _judge_stream(stream: ConnectStream, url: str) -> Finding:
    asked, named = urlsplit(url), urlsplit(stream.url)
    if is_loopback(asked.netloc):
        return ok("webhook", f"{url} connects calls to {stream.url}")
    if named.scheme != "wss":
        return wrong(
            "webhook",
            f"{url} connects calls to {stream.url}",
            "Twilio accepts wss:// only",
            f"set server.public_url to {asked.scheme}://{asked.netloc}",
        )
    if named.netloc.lower() != asked.netloc.lower():
        return wrong(
            "webhook",
            f"{url} connects calls to {stream.url}",
            "that is another host: a proxy changes the Host header",
            f"set server.public_url to {asked.scheme}://{asked.netloc}, or have the proxy keep it",
        )
    return ok("webhook", f"{url} connects calls to {stream.url}")


def _starts_a_stream(body: bytes) -> bool:
    if b"<!DOCTYPE" in body:
        return False  # Twilio rejects it; not parsed because of entities
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - without a DOCTYPE no entities are defined
    except ElementTree.ParseError:
        return False
    return root.find("Start/Stream") is not None
