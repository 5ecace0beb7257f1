"""One request of Twilio's for TwiML: what the caller gets next.

/incoming-call ──▶ begin ──▶ <Connect><Stream>, the agent
                                  │ action
/call-ended ──▶ after_agent ──▶ <Say>, <Redirect>, <Hangup>, or <Dial>
                                                           │ action
/call-ended ──▶ after_dial ──▶ <Hangup>, or the agent again: the next leg
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bridge.addresses import BadHost, public_address
from bridge.admission.slots import NotAdmitted
from bridge.call.introduction import TICKET, info_of
from bridge.call_setup import agent_of
from bridge.caller import OUTBOUND
from bridge.config.settings import Settings
from bridge.http.dialling import outbound_parameters, outbound_query
from bridge.legs import DIAL_STATUS, LEG, call_ended_address, transfer_twiml
from bridge.log import get_logger
from bridge.outcome import Outcome
from bridge.service import Bridge
from bridge.twilio import twiml
from bridge.twilio.dialled import DialResult
from bridge.twilio.numbers import counted_as
from bridge.twilio.targets import caller_id

log = get_logger(__name__)

# Between looks at a call that goes on with another media stream.
WAIT_SECONDS: Final = 5

_APOLOGISE_AFTER: Final = {
    Outcome.AGENT_UNREACHABLE,
    Outcome.AGENT_FAILED,
    Outcome.INTERNAL_ERROR,
    Outcome.SERVER_LOST,
}
# After these `call.after_url` takes over no more.
_NOTHING_AFTER: Final = {Outcome.OPERATOR_HUNG_UP, Outcome.TRANSFERRED}


class Webhook:
    """A signed request about one call: its `form`, the `query` of its address, and its Host.

    `agent` is the name of the call's agent, None to choose it; `settings` are that agent's.
    """

    def __init__(
        self,
        bridge: Bridge,
        settings: Settings,
        form: Mapping[str, str],
        query: Mapping[str, str],
        host: str,
        agent: str | None = None,
    ) -> None:
        self._bridge = bridge
        self._common = settings
        self.form = form
        self._host = host
        self._call_sid = form.get("CallSid", "")
        self._caller, self._called = form.get("From", ""), form.get("To", "")
        self.outbound = form.get("Direction") == OUTBOUND
        self._query = query
        self._parameters = {name: form.get(name, "") for name in ("From", "To", "CallSid")}
        # Twilio's signature covers the address, and with it the parameters of an outbound call.
        if self.outbound:
            outbound = outbound_parameters(query)
            self._parameters = {**outbound, **self._parameters, "direction": OUTBOUND}
        if agent is None:
            agent = agent_of(settings, info_of(self._call_sid, self._parameters))
        self._agent = agent
        self.settings = settings.for_agent(self._agent)
        leg = query.get(LEG, "")
        self._leg = int(leg) if leg.isascii() and leg.isdigit() and len(leg) < 4 else 1

    # ---- the agent ------------------------------------------------------------------------------

    async def reserve(self) -> None:
        """Reserve a slot for the call's next leg. Raises NotAdmitted."""
        counted = "" if self.outbound else counted_as(self._caller)
        await self._bridge.entrance.reserve(self.settings, self._call_sid, counted)

    def busy(self) -> bytes:
        """Answer a call that is not admitted."""
        words, overflow = self.settings.words, self.settings.server.overflow_url
        return twiml.redirect(overflow) if overflow else twiml.hang_up(words.busy, words.spoken)

    async def begin(self) -> bytes:
        """Connect a call that has a slot to the agent. Raises BadHost."""
        record = None
        if self.form.get("CallStatus") == "in-progress":
            # An inbound call's first webhook comes while it rings: this may be another leg.
            record = await self._bridge.recorder.recall(self._call_sid)
        leg = 1 + len(record.legs if record is not None else ())
        document = self._connect(leg)
        if leg == 1:
            self._bridge.prewarm(self._common, self._call_sid, self._parameters)
        return document

    def _connect(self, leg: int, dial_status: str = "") -> bytes:
        address = public_address(self.settings.server.public_url, self._host)
        more = {LEG: str(leg), DIAL_STATUS: dial_status} if leg > 1 else {}
        ticket = self._bridge.entrance.ticket(self._call_sid, parameters=self._parameters)
        return twiml.connect_stream(
            f"{address.socket}/media-stream",
            action=call_ended_address(address.web, leg, self._kept),
            parameters={**self._parameters, **more, TICKET: ticket},
        )

    # ---- after it -------------------------------------------------------------------------------

    async def after_agent(self) -> bytes:
        """Answer what comes after the agent, by the call's outcome."""
        if self._bridge.calls.is_on(self._call_sid):
            return self._wait()
        ended = await self._bridge.recorder.ending_of(self._call_sid, self._leg)
        words, voice = self.settings.words, self.settings.words.spoken
        if ended is not None and ended.outcome == Outcome.HANDED_OVER:
            if not ended.transfer_to:
                return self._wait()
            action = self._next(transfer=ended.transfer_name)
            parties = self._caller, self._called
            return transfer_twiml(self.settings.functions, ended.transfer_to, *parties, action)
        if ended is not None and ended.outcome in _APOLOGISE_AFTER:
            if not (number := self.settings.call.fallback_number):
                return twiml.hang_up(words.apology, voice)
            configured = self.settings.functions.transfer_caller_id
            shown = caller_id(configured, self._caller, self._called)
            action = self._next(fallback="1")
            return twiml.dial(
                number, words=words.apology, voice=voice, caller_id=shown, action=action
            )
        after = self.settings.call.after_url
        if after and (ended is None or ended.outcome not in _NOTHING_AFTER):
            return twiml.redirect(after)
        return twiml.hang_up()

    async def after_dial(self, result: DialResult) -> bytes:
        """Answer what comes after a transfer, or after the fallback of an apology.

        Twilio may repeat the request; the answer is the same, and nothing is counted twice.
        """
        fallback = self.settings.call.fallback_number if "fallback" in self._query else ""
        name = "fallback" if fallback else self._query.get("transfer", "")
        wanted = not fallback and self.settings.functions.after_failed_transfer == "agent"
        back: bytes | None = None
        if result.answered:
            outcome = Outcome.TRANSFERRED
        elif result.caller_gone:
            outcome = Outcome.CALLER_HUNG_UP
        else:
            outcome = Outcome.AGENT_ENDED
            if wanted and (back := await self._back_to_agent(result)) is not None:
                outcome = Outcome.HANDED_OVER
        await self._bridge.note_dialled(
            self._call_sid, self._leg, result, outcome, name=name, fallback=fallback
        )
        if back is not None:
            return back
        words = self.settings.words
        said = "" if result.answered else words.transfer_failed
        return twiml.hang_up(said, words.spoken)

    async def _back_to_agent(self, result: DialResult) -> bytes | None:
        """Return the TwiML that brings the caller back to the agent; None if there is no room."""
        try:
            await self.reserve()
            return self._connect(self._leg + 1, result.status)
        except (BadHost, NotAdmitted) as error:
            why, call_sid = str(error), self._call_sid
            log.warning("caller does not return to the agent", reason=why, call_sid=call_sid)
            return None

    def _wait(self) -> bytes:
        """Keep the line open for another media stream of the call, and ask again how it ended."""
        return twiml.wait_and_ask(WAIT_SECONDS, self._next())

    # ---- addresses ------------------------------------------------------------------------------

    @property
    def _kept(self) -> Mapping[str, str]:
        """What the next address keeps: the agent, and an outbound call's variables."""
        kept = outbound_query(self._query) if self.outbound else {}
        return {**kept, **({"agent": self._agent} if self._agent else {})}

    def _next(self, **more: str) -> str:
        # Relative, so that a strange Host is no reason to leave the caller in silence.
        return call_ended_address("", self._leg, self._kept, **more)
