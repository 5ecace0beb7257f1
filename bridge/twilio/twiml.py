"""Writes TwiML, the XML that tells Twilio what to do with a call.

It is built as a tree, so that nothing a caller or a header contains can become markup.

https://www.twilio.com/docs/voice/twiml
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from xml.etree import ElementTree

from bridge.twilio.targets import read_target

CONTENT_TYPE = "text/xml; charset=utf-8"

# How long a dialled phone rings.
RING_SECONDS: Final = 20

# XML 1.0 cannot contain these, not even escaped; Twilio would refuse the document.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# https://www.twilio.com/docs/voice/twiml/stream#parameter: name and value together.
MAX_PARAMETER = 499


class Voice(NamedTuple):
    """How `<Say>` speaks: a language such as "fr-FR", a voice such as "Polly.Lea-Neural".

    Empty, each is Twilio's default: en-US, and the voice of the account. Twilio refuses a voice
    that does not speak the language.

    https://www.twilio.com/docs/voice/twiml/say/text-speech
    """

    language: str = ""
    name: str = ""


DEFAULT_VOICE: Final = Voice()


def connect_stream(url: str, *, action: str, parameters: Mapping[str, str]) -> bytes:
    """Write `<Connect><Stream>`: stream the call's audio to the media socket at `url`.

    `url` is a ws or wss URL without a query string, which Twilio would drop silently. When the
    socket closes, Twilio requests `action` for the TwiML that follows. `parameters` reach the
    socket in its `start` message; Twilio allows 500 characters for name and value together, so a
    longer value is cut, which is better than losing the call. An empty value is left out.

    Raises ValueError for a url with a query string or a fragment.

    https://www.twilio.com/docs/voice/twiml/stream
    """
    if "?" in url or "#" in url:
        raise ValueError(f"a stream's address takes no query string or fragment: {url!r}")
    response = ElementTree.Element("Response")
    connect = ElementTree.SubElement(response, "Connect", {"action": _text(action)})
    stream = ElementTree.SubElement(connect, "Stream", {"url": _text(url)})
    for name, value in parameters.items():
        if value:
            passed = parameter_value(name, value)
            ElementTree.SubElement(stream, "Parameter", {"name": _text(name), "value": passed})
    return _document(response)


def parameter_value(name: str, value: str) -> str:
    """Return the value of a stream's parameter as `connect_stream` passes it to Twilio."""
    return _text(value)[: MAX_PARAMETER - len(name)]


def hang_up(words: str = "", voice: Voice = DEFAULT_VOICE) -> bytes:
    """Write `<Hangup>`, after `<Say>` with `words` if there are any."""
    response = ElementTree.Element("Response")
    _say(response, words, voice)
    ElementTree.SubElement(response, "Hangup")
    return _document(response)


def nothing() -> bytes:
    """Write an empty `<Response>`, for a call that is over."""
    return _document(ElementTree.Element("Response"))


def wait_and_ask(seconds: int, url: str) -> bytes:
    """Write `<Pause>` and `<Redirect>`: keep the line open, then continue with the TwiML at `url`.

    https://www.twilio.com/docs/voice/twiml/pause
    """
    response = ElementTree.Element("Response")
    ElementTree.SubElement(response, "Pause", {"length": str(seconds)})
    ElementTree.SubElement(response, "Redirect").text = _text(url)
    return _document(response)


def redirect(url: str) -> bytes:
    """Write `<Redirect>`: continue with the TwiML at `url`, requested by POST.

    https://www.twilio.com/docs/voice/twiml/redirect
    """
    response = ElementTree.Element("Response")
    ElementTree.SubElement(response, "Redirect").text = _text(url)
    return _document(response)


def dial(
    target: str,
    *,
    words: str = "",
    voice: Voice = DEFAULT_VOICE,
    caller_id: str = "",
    timeout: int = RING_SECONDS,
    action: str = "",
) -> bytes:
    """Write `<Dial>`: say `words`, connect the call to `target`, then hang up.

    Used for a transfer, and for the fallback after an apology. It rings for `timeout` seconds.
    `caller_id` is the number that the other phone shows; empty, Twilio chooses. When the second
    call is over, or nobody has answered it, Twilio requests `action` with DialCallStatus; without
    an action it hangs up.

    Raises ValueError for a target that `bridge.twilio.targets` does not read.

    https://www.twilio.com/docs/voice/twiml/dial
    """
    noun, address, send_digits = read_target(target)
    response = ElementTree.Element("Response")
    _say(response, words, voice)
    verb = ElementTree.SubElement(response, "Dial", {"timeout": str(timeout)})
    if caller_id:
        verb.set("callerId", _text(caller_id))
    if action:
        verb.set("action", _text(action))
    element = ElementTree.SubElement(verb, noun)
    if send_digits:
        element.set("sendDigits", send_digits)
    element.text = _text(address)
    ElementTree.SubElement(response, "Hangup")
    return _document(response)


def _say(response: ElementTree.Element, words: str, voice: Voice) -> None:
    if words:
        say = ElementTree.SubElement(response, "Say")
        if voice.language:
            say.set("language", _text(voice.language))
        if voice.name:
            say.set("voice", _text(voice.name))
        say.text = _text(words)


def _text(value: str) -> str:
    return _NOT_XML.sub("\ufffd", value)


def _document(root: ElementTree.Element) -> bytes:
    document: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return document
