"""Twilio's part of a call: carries out TwiML verb by verb, one media stream at a time.

A voice webhook answers TwiML (twilio.com/docs/voice/twiml). `<Connect><Stream>` runs a media stream
until the server closes it or the caller hangs up; in the first case `<Connect action>` is requested
and its TwiML carried out, or the next verb is (twilio.com/docs/voice/twiml/connect). A socket that
cannot be opened, or that breaks, is not opened again: Twilio goes on as if it had been closed.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal

import trio

from bridge.testing.phone import twiml
from bridge.testing.phone.call_log import CallLog
from bridge.testing.phone.media_socket import StreamRefusedError, open_media_socket
from bridge.testing.phone.media_stream import SimulatedMediaStream, StreamFacts
from bridge.testing.phone.webhook import OpenStream, WebhookError, request, sign, voice_form

MAX_DOCUMENTS = 50  # TwiML documents in one call; bounds a redirect loop

_REDIRECT_LOOP = 11200

Ending = Literal[
    "caller_hung_up",  # the caller hung up
    "dropped",  # the connection was lost, by `drop` or by cancelling the phone
    "completed",  # the TwiML ended, or had <Hangup>
    "rejected",  # the TwiML had <Reject>
    "dialled",  # the TwiML had <Dial>: the caller is connected to another number
    "failed",  # Twilio would say "an application error has occurred" and hang up
]


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
        self.connected = trio.Event()  # a media stream is open, or none is to be expected soon
        self.over = trio.Event()
        self.ending: Ending | None = None
        self.stream: SimulatedMediaStream | None = None
        self.stream_sid: str | None = None
        self.verbs: list[twiml.Verb] = []

    async def fetch(self, url: str, method: str, call_status: str) -> list[twiml.Verb]:
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
        answer = await request(
            url, form, method=method, token=caller.auth_token, open_stream=caller.open_stream
        )
        return twiml.read_twiml(answer.body, answer.content_type, url)

    async def leave(self, how: Ending) -> None:
        """End the call from the caller's side; return when it has ended."""
        if self.over.is_set():
            return
        self._left = self._left or how
        if self.stream is None:
            self._line.cancel("the caller left")
        elif how == "dropped":
            await self.stream.drop()
        else:
            await self.stream.hang_up()
        await self.over.wait()  # each remaining step has its own deadline

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
                return follow
            try:
                verbs = await self.fetch(follow.url, follow.method, "in-progress")
            except (WebhookError, twiml.TwimlError) as error:
                self._log.fault(error.code, error.detail)
                return "failed"
        self._log.fault(_REDIRECT_LOOP, f"more than {MAX_DOCUMENTS} TwiML documents in one call")
        return "failed"

    async def _perform_document(self, verbs: list[twiml.Verb]) -> Ending | twiml.Redirect:
        """Carry out verbs in order; return how the call ended, or where to continue."""
        for verb in verbs:
            self.verbs.append(verb)
            if not isinstance(verb, twiml.ConnectStream):
                self._log.note("twiml", describe(verb))
            match verb:
                case twiml.ConnectStream():
                    await self._connect(verb)
                    if self._left is not None:
                        return self._left
                    if verb.action is not None:
                        return twiml.Redirect(verb.action, verb.method)
                case twiml.Redirect():
                    return verb
                case twiml.Pause(seconds):
                    self.connected.set()
                    await trio.sleep(seconds)
                case twiml.Hangup():
                    return "completed"
                case twiml.Reject():
                    return "rejected"
                case twiml.Dial():
                    return "dialled"
                case twiml.Say():
                    pass  # takes no time: there is no audio of Twilio's voice
        return "completed"

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
        case twiml.Dial(number):
            return f"dials {number}"
        case twiml.ConnectStream(url):
            return f"connects to {url}"
