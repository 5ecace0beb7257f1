"""Twilio's part of a call: carries out TwiML verb by verb, one media stream at a time.

A voice webhook answers TwiML (twilio.com/docs/voice/twiml). `<Connect><Stream>` runs a media stream
until the server closes it or the caller hangs up; in the first case `<Connect action>` is requested
and its TwiML carried out, or the next verb is (twilio.com/docs/voice/twiml/connect). A socket that
cannot be opened, or that breaks, is not opened again: Twilio goes on as if it had been closed.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Literal

import trio

from bridge.testing.phone import twiml
from bridge.testing.phone.call_log import CallLog
from bridge.testing.phone.media_socket import StreamRefusedError, open_media_socket
from bridge.testing.phone.media_stream import SimulatedMediaStream, StreamFacts
from bridge.testing.phone.webhook import (
    Form,
    OpenStream,
    WebhookError,
    request,
    sign,
    voice_form,
)

MAX_DOCUMENTS = 50  # TwiML documents in one call; bounds a redirect loop

_REDIRECT_LOOP = 11200

# What a dialled phone may be shown: a number in E.164 (twilio.com/docs/api/errors/13214).
_SHOWN = re.compile(r"\+[1-9][0-9]{6,14}")

Ending = Literal[
    "caller_hung_up",  # the caller hung up
    "dropped",  # the connection was lost, by `drop` or by cancelling the phone
    "completed",  # the TwiML ended, or had <Hangup>
    "rejected",  # the TwiML had <Reject>
    "dialled",  # the caller was connected to another number by <Dial>, and the TwiML ended
    "failed",  # Twilio would say "an application error has occurred" and hang up
]


DialStatus = Literal["completed", "busy", "no-answer", "failed", "canceled"]


@dataclass(frozen=True, slots=True)
class _Next:
    """The TwiML to continue with: where, and what is told there besides the usual facts."""

    url: str
    method: str
    facts: Form = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Caller:
    """The parties of the call and Twilio's behaviour; see `SimulatedPhone` for each field."""

    from_number: str
    to_number: str
    caller_name: str | None
    account_sid: str
    call_sid: str
    auth_token: str | None
    silence_frames: bool
    first_timestamp: int
    dials: tuple[DialStatus, ...]
    talk_seconds: float
    webhook_pause: float
    open_stream: OpenStream


class Exchange:
    """Carries one call: `fetch` the first TwiML, then run `carry_out` until the call has ended."""

    def __init__(
        self, caller: Caller, base_url: str, log: CallLog, direction: str = "inbound"
    ) -> None:
        self._caller = caller
        self._direction = direction
        self._base_url = base_url
        self._log = log
        self._line = trio.CancelScope()
        self._left: Ending | None = None  # set when the caller ends the call
        self._dials = 0
        self._dialled = False  # the caller was connected to another number
        self._ringing: trio.CancelScope | None = None
        self._instead: list[twiml.Verb] | None = None  # given over REST
        self.connected = trio.Event()  # a media stream is open, or none is to be expected soon
        self.over = trio.Event()
        self.ending: Ending | None = None
        self.stream: SimulatedMediaStream | None = None
        self.stream_sid: str | None = None
        self.verbs: list[twiml.Verb] = []

    async def fetch(
        self, url: str, method: str, call_status: str, facts: Form | None = None
    ) -> list[twiml.Verb]:
        """Request TwiML as Twilio does. Raises `WebhookError` or `TwimlError`."""
        caller = self._caller
        self._log.note("dialling", url)
        form = voice_form(
            call_sid=caller.call_sid,
            account_sid=caller.account_sid,
            from_number=caller.from_number,
            to_number=caller.to_number,
            caller_name=caller.caller_name,
            call_status=call_status,
        )
        form = [(name, self._direction if name == "Direction" else text) for name, text in form]
        form += facts or []
        answer = await request(
            url,
            form,
            method=method,
            token=caller.auth_token,
            open_stream=caller.open_stream,
            pause=caller.webhook_pause,
        )
        return twiml.read_twiml(answer.body, answer.content_type, url)

    async def leave(self, how: Ending) -> None:
        """End the call from the caller's side; return when it has ended."""
        if self.over.is_set():
            return
        self._left = self._left or how
        if self._ringing is not None:
            self._ringing.cancel("the caller left")
        elif self.stream is None:
            self._line.cancel("the caller left")
        elif how == "dropped":
            await self.stream.drop()
        else:
            await self.stream.hang_up()
        await self.over.wait()  # each remaining step has its own deadline

    async def update(self, verbs: list[twiml.Verb]) -> None:
        """Carry out other TwiML from now on, as when Twilio is told so over REST: the media stream
        ends, and its action is not requested. Does nothing without a media stream."""
        if self.stream is not None:
            self._instead = verbs
            await self.stream.hang_up()

    async def carry_out(self, verbs: list[twiml.Verb]) -> None:
        """Carry out the TwiML until the call ends. Cancelling drops the call."""
        ending: Ending = "dropped"  # if cancelled
        try:
            with self._line:
                ending = await self._perform(verbs)
        finally:
            self.stream = None
            self.ending = self._left or ending
            self._log.playback.clear(trio.current_time())
            self.over.set()
            self.connected.set()
            self._log.note("ended", self.ending)
            self._log.ended_at = trio.current_time()

    async def _perform(self, verbs: list[twiml.Verb]) -> Ending:
        for _ in range(MAX_DOCUMENTS):
            follow = await self._perform_document(verbs)
            if isinstance(follow, str):
                return "dialled" if self._dialled and follow == "completed" else follow
            if isinstance(follow, list):
                verbs = follow
                continue
            status = "in-progress" if self._left is None else "completed"
            try:
                verbs = await self.fetch(follow.url, follow.method, status, follow.facts)
            except (WebhookError, twiml.TwimlError) as error:
                self._log.fault(error.code, error.detail)
                return "failed"
            if self._left is not None:
                return self._left
        self._log.fault(_REDIRECT_LOOP, f"more than {MAX_DOCUMENTS} TwiML documents in one call")
        return "failed"

    async def _perform_document(self, verbs: list[twiml.Verb]) -> Ending | _Next | list[twiml.Verb]:
        """Carry out verbs in order; return how the call ended, or what or where to continue."""
        for verb in verbs:
            self.verbs.append(verb)
            if not isinstance(verb, twiml.ConnectStream):
                self._log.note("twiml", describe(verb))
            match verb:
                case twiml.ConnectStream():
                    await self._connect(verb)
                    if self._left is not None:
                        return self._left
                    if self._instead is not None:
                        instead, self._instead = self._instead, None
                        return instead
                    if verb.action is not None:
                        return _Next(verb.action, verb.method)
                case twiml.Redirect(url, method):
                    return _Next(url, method)
                case twiml.Pause(seconds):
                    self.connected.set()
                    await trio.sleep(seconds)
                case twiml.Hangup():
                    return "completed"
                case twiml.Reject():
                    return "rejected"
                case twiml.Dial():
                    facts = await self._dial(verb)
                    if verb.action is not None:
                        return _Next(verb.action, verb.method, facts)
                    if self._left is not None:
                        return self._left
                case twiml.Say():
                    pass  # takes no time: there is no audio of Twilio's voice
        return "completed"

    async def _dial(self, dial: twiml.Dial) -> Form:
        """Place the second call, until it is over; return what its action is told of it."""
        dials = self._caller.dials
        status = dials[min(self._dials, len(dials) - 1)]
        self._dials += 1
        shown = dial.caller_id or self._caller.from_number
        if not _SHOWN.fullmatch(shown):
            what = f"callerId {shown!r} is no number that may be shown"
            self._log.fault(twiml.INVALID_CALLER_ID, what)
            status = "failed"
        self.connected.set()
        began = trio.current_time()
        with trio.CancelScope() as self._ringing:
            if status == "no-answer":
                await trio.sleep(dial.timeout)
            elif status == "completed":
                self._dialled = True
                await trio.sleep(self._caller.talk_seconds)
        self._ringing = None
        if self._left is not None and status != "completed":
            status = "no-answer"
        facts = [("DialCallStatus", status), ("DialCallSid", "CA" + secrets.token_hex(16))]
        if status == "completed":
            facts.append(("DialCallDuration", str(round(trio.current_time() - began))))
        return facts

    async def _connect(self, connect: twiml.ConnectStream) -> None:
        """Run one media stream to its end; a socket that does not open is recorded as a fault."""
        headers = [(b"User-Agent", b"Twilio.TmeWs/1.0")]
        if self._caller.auth_token is not None:
            signed = "wss" + connect.url[connect.url.index("://") :]
            signature = sign(signed, (), self._caller.auth_token)
            headers.append((b"X-Twilio-Signature", signature.encode("ascii")))
        facts = StreamFacts(
            account_sid=self._caller.account_sid,
            call_sid=self._caller.call_sid,
            stream_sid="MZ" + secrets.token_hex(16),
            parameters=connect.parameters,
            first_timestamp=self._caller.first_timestamp,
            silence_frames=self._caller.silence_frames,
        )
        try:
            address, note = twiml.dialled_address(connect.url, self._base_url)
            if note is not None:
                self._log.note("note", note)
            opening = open_media_socket(address, headers, self._caller.open_stream)
            async with opening as (socket, stream):
                self.stream_sid = facts.stream_sid
                self.stream = SimulatedMediaStream(socket, stream, facts, self._log, self.connected)
                await self.stream.run()
        except (StreamRefusedError, twiml.TwimlError) as error:
            self._log.fault(error.code, f"{connect.url}: {error.detail}")
        finally:
            if self.stream is not None:
                self.stream = None
                # The rest is never played: Twilio goes on with the TwiML.
                self._log.playback.clear(trio.current_time())
                self._log.wake()


def describe(verb: twiml.Verb) -> str:
    """Describe what Twilio does for a verb."""
    match verb:
        case twiml.Say(text=text):
            return f"says “{text}”"
        case twiml.Pause(seconds):
            return f"waits {seconds:g} s"
        case twiml.Hangup():
            return "hangs up"
        case twiml.Reject(reason):
            return f"rejects the call ({reason})"
        case twiml.Redirect(url):
            return f"continues with {url}"
        case twiml.Dial(number=number):
            return f"dials {number}"
        case twiml.ConnectStream(url):
            return f"connects to {url}"
