"""The console in a real browser, over the real server, with simulated phones and a scripted agent.

Pictures of what it looks like are kept where tests/browser/driver.py says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import trio

from bridge.config.secrets import Secrets
from bridge.functions import Functions
from bridge.records.record import CallRecord
from bridge.testing.agent.server import AgentSession
from bridge.testing.agent.voice import hum
from bridge.testing.phone.phone import SimulatedPhone
from bridge.twilio.rest import TwilioRest
from tests.browser.driver import NARROW, WIDE, Browser, chromium
from tests.twilio_standin import ACCOUNT_SID, AUTH_TOKEN, OWN_NUMBER, TwilioStandIn
from tests.world import QUIET, World, on_loopback, settings

T = TypeVar("T")
SECOND = bytes(range(1, 251)) * 32
# Chromium's offline mode leaves open connections be; a server that dies does not.
EVENTS_CAN_BE_DROPPED = """
    const reallyFetch = window.fetch;
    window.fetch = (path, options) => {
      if (path !== "/events") return reallyFetch(path, options);
      const connection = new AbortController();
      window.dropEvents = () => connection.abort();
      return reallyFetch(path, { ...options, signal: connection.signal });
    };
"""
EVIL = "<img src=x onerror=document.title='owned'><b>bold</b>"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(window: Browser) -> Iterator[Browser]:
    window.fresh()
    yield window
    assert window.complaints() == []


async def aside(what: Callable[..., T], *arguments: Any) -> T:
    """Drive the browser in a thread: it waits while the server has to go on."""
    return await trio.to_thread.run_sync(what, *arguments)


class Stage:
    """A server, and an agent that says what the test has it say."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sessions: list[AgentSession] = []

    async def script(self, agent: AgentSession) -> None:
        self.sessions.append(agent)
        await trio.sleep_forever()

    async def session(self, number: int = 0) -> AgentSession:
        """The agent's session of the call of that number."""
        with trio.fail_after(60):
            while len(self.sessions) <= number:  # noqa: ASYNC110 - there is no event
                await trio.sleep(0.01)
        return self.sessions[number]


def book_table(people: int) -> str:
    """Book a table for so many people."""
    return f"booked for {people}"


async def look_up(name: str) -> str:
    """Look a guest up, which takes until the call is over."""
    await trio.sleep_forever()
    return name


@asynccontextmanager
async def stage(browser: Browser, folder: Path, **tables: Any) -> AsyncIterator[Stage]:
    """The real server on loopback, keeping records in `folder`; the browser leaves it first."""
    using = settings(records={"url": f"sqlite:///{folder}/calls.db"}, **tables)
    made: list[Stage] = []

    async def script(agent: AgentSession) -> None:
        await made[0].script(agent)

    async with on_loopback(script, msgspec.structs.replace(QUIET, stale_chunks=0), using) as world:
        made.append(Stage(world))
        world.app.extensions["bridge"].functions.loaded[""] = Functions.of(book_table, look_up)
        yield made[0]
        await aside(browser.open, "about:blank")


def transcript(browser: Browser) -> list[str]:
    return browser.texts(".call[open] .line .words")


def shows(browser: Browser, selector: str, words: str) -> None:
    """Wait until an element shows these words."""
    browser.until(
        lambda: any(words in text for text in browser.texts(selector)),
        why=f"{selector} never shows {words!r}",
    )


async def a_talk(agent: AgentSession, phone: SimulatedPhone) -> None:
    """Enough of a conversation for a picture: heard, cut off, keys, functions, replies that take
    their time."""
    await agent.say("Good evening, Trattoria da Enzo. How can I help you?", SECOND)
    for question, wait, answer in [
        ("Do you have a table for four tonight?", 0.42, "For four, yes. At half past seven?"),
        ("Half past seven is fine.", 0.65, "And what name may I note?"),
        ("Lovelace.", 1.1, "Thank you. Let me note that down."),
    ]:
        await phone.say(hum(0.4))
        await agent.user_said(question)
        await trio.sleep(wait)
        await agent.latency_report(total_latency=wait, ttt_text_latency=wait / 2, tts_latency=0.2)
        await agent.say(answer, SECOND[:3200])
    await phone.wait_played()  # a key silences the agent
    await phone.press("4#")
    await agent.wait_for_user_message()
    await agent.say("Four, then.", SECOND[:3200])
    await agent.call_functions([{"name": "book_table", "arguments": '{"people": 4}'}], timeout=5)
    heard = phone.heard_seconds
    async with trio.open_nursery() as talking:
        talking.start_soon(agent.say, "Your table is booked, and here you will find", SECOND * 60)
        await phone.wait_heard(heard + 1)
        await agent.user_started_speaking()
    await agent.user_said("Wonderful, thank you. One more thing:")
    await agent.latency_report(total_latency=0.61, ttt_text_latency=0.32, tts_latency=0.21)


async def test_a_newcomer_is_told_what_to_do(browser: Browser, tmp_path: Path) -> None:
    async with stage(browser, tmp_path) as on:

        def look() -> None:
            browser.open(on.world.base_url)
            shows(browser, "#feed", "Live")
            shows(browser, "#live", "No live calls")
            assert "bridge phone --url " + on.world.base_url in browser.text("#live")
            assert "TWILIO_AUTH_TOKEN" in browser.text("#live")  # else the call is refused
            assert "bridge number" in browser.text("#live")
            assert browser.find("#live a[href='/softphone']").is_displayed()
            browser.click("#dial")
            shows(browser, "dialog", "set TWILIO_ACCOUNT_SID")  # there are no credentials
            browser.click("dialog .foot .button")
            browser.until(lambda: not browser.all("dialog"))
            shows(browser, "#recent", "Ended calls are listed here")
            browser.pictures("console-empty")
            assert browser.hosts() == {on.world.base_url.removeprefix("http://")}

        await aside(look)


async def test_a_call_from_its_first_word_to_its_record(browser: Browser, tmp_path: Path) -> None:
    async with stage(browser, tmp_path, functions={"filler_seconds": 0}) as on:
        await aside(browser.open, on.world.base_url)
        await aside(shows, browser, "#feed", "Live")
        async with on.world.call() as phone:
            agent = await on.session()
            await aside(shows, browser, ".call .people", "+15550100001")
            async with on.world.call(from_number="+442079460123") as other:
                second = await on.session(1)
                await second.say("Hello! How can I help you today?", SECOND)
                await second.user_said("Who is on tonight?")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(
                        second.call_functions,
                        [{"name": "look_up", "arguments": '{"name": "Ada"}'}],
                    )
                    await a_talk(agent, phone)
                    await aside(talk_is_shown, browser)
                    await aside(browser.pictures, "console-live")
                    nursery.cancel_scope.cancel()
                await other.hang_up()
            # The card tells how it ended, and so does the list, from the record.
            sid = other.call_sid
            await aside(shows, browser, f"[data-sid='{sid}'] .state", "Caller hung up")
            await aside(shows, browser, f".row[data-sid='{sid}']", "Caller hung up")
            await aside(hang_up_by_button, browser, phone.call_sid)
            with trio.fail_after(60):
                await on.world.quiet()
        await aside(shows, browser, f".row[data-sid='{phone.call_sid}']", "Operator hung up")
        await aside(record_is_shown, browser, phone.call_sid)


def talk_is_shown(browser: Browser) -> None:
    shows(browser, ".call[open] .line .words", "One more thing:")
    cut = browser.texts(".call[open] .line.cut .words")
    assert len(cut) == 1
    assert "Your table is booked" in cut[0]
    assert "cut off after" in cut[0]
    assert len(browser.all(".call[open] .bar-of")) == 3
    shows(browser, ".call .functions li", "book_table()")
    shows(browser, ".call .functions li", "done")
    shows(browser, ".call .functions li", "look_up()")
    shows(browser, ".call .functions li", "running")
    shows(browser, ".call .state", "Thinking")
    assert "median" in browser.text(".call[open] .plot-of")
    browser.until(lambda: "Replies to typing" in browser.texts(".call[open] .facts dt"))
    assert any(text.startswith("total 6") for text in browser.texts(".call[open] .facts dd"))


def hang_up_by_button(browser: Browser, sid: str) -> None:
    button = f"[data-sid='{sid}'] .button.danger"
    browser.click(button)
    browser.until(lambda: browser.all("dialog"))
    browser.picture("console-hang-up")
    browser.click("dialog .button:not(.danger)")
    browser.until(lambda: not browser.all("dialog"))
    assert not browser.all(f"[data-sid='{sid}'].over")  # nothing happened
    browser.click(button)
    browser.until(lambda: browser.all("dialog"))
    browser.click("dialog .button.danger")
    shows(browser, f"[data-sid='{sid}'] .state", "Operator hung up")


# How far the transcript is from its end when the page has been laid out.
_TO_THE_END = """
    const frame = () => new Promise(requestAnimationFrame);
    return frame().then(frame).then(() => {
      const box = document.querySelector(".call[open] .transcript");
      return box.scrollHeight - box.scrollTop - box.clientHeight;
    });
"""


def record_is_shown(browser: Browser, sid: str) -> None:
    browser.click(f".row[data-sid='{sid}']")
    shows(browser, "dialog", "an operator hung up")
    shows(browser, "dialog .words", "One more thing:")
    shows(browser, "dialog .functions", "book_table()")
    assert len(browser.all("dialog .bar-of")) == 3
    assert {"Reply times", "Replies to typing", "Deepgram reports"} <= set(
        browser.texts("dialog .facts dt")
    )
    browser.pictures("console-record")
    browser.click("dialog .foot .button")
    browser.until(lambda: not browser.all("dialog"))
    browser.pictures("console-recent")
    for width in (NARROW, WIDE, NARROW):  # nobody has gone back to read
        browser.look(width=width)
        assert browser.run(_TO_THE_END) < 2
    browser.look()


async def test_an_operator_takes_part_in_a_call(browser: Browser, tmp_path: Path) -> None:
    """Speaks as the agent, and hands the caller to a person; what is refused is told."""
    targets = {"reception": "+15551112222", "night desk": "+15551113333"}
    async with stage(browser, tmp_path, functions={"transfer_to": targets}) as on:
        await aside(browser.open, on.world.base_url)
        await aside(shows, browser, "#feed", "Live")
        async with on.world.call() as phone:
            agent = await on.session()
            await agent.user_said("Is there a table by the window?")
            await aside(speak_as_the_agent, browser)
            await agent.wait_for_message("InjectAgentMessage")
            await phone.wait_heard(0.5)
            await aside(transfer_by_button, browser)
            await phone.wait_ended()
            with trio.fail_after(60):
                await on.world.quiet()
        assert phone.ending == "dialled"
        assert any("+15551113333" in str(verb) for verb in phone.verbs)
        await aside(shows, browser, ".call .state", "Handed over")
        await aside(lambda: browser.until(lambda: not browser.find(".compose").is_displayed()))
        await aside(shows, browser, f".row[data-sid='{phone.call_sid}']", "Transferred")


def speak_as_the_agent(browser: Browser) -> None:
    shows(browser, ".words", "by the window?")
    browser.tab_to("Have the agent say")
    browser.type("I will ask the kitchen.\n")
    shows(browser, ".line.agent .words", "I will ask the kitchen.")
    browser.until(lambda: browser.find(".compose .field").get_attribute("value") == "")
    browser.pictures("console-act")


def transfer_by_button(browser: Browser) -> None:
    browser.click(".call .foot .button:not(.danger)")
    browser.until(lambda: browser.all("dialog"))
    assert browser.focused() == "Transfer to"
    browser.click("dialog .foot .button:not(.primary)")
    browser.until(lambda: not browser.all("dialog"))
    browser.click(".call .foot .button:not(.danger)")
    browser.until(lambda: browser.all("dialog"))
    browser.find("#dial-target").send_keys("night")
    browser.pictures("console-transfer")
    browser.click("dialog .button.primary")
    browser.until(lambda: not browser.all("dialog"))


async def test_two_people_see_the_same(browser: Browser, tmp_path: Path) -> None:
    async with stage(browser, tmp_path) as on:
        await aside(browser.open, on.world.base_url)
        first = browser.driver.current_window_handle
        await aside(browser.driver.switch_to.new_window, "tab")
        second = browser.driver.current_window_handle
        await aside(browser.open, on.world.base_url)
        await aside(shows, browser, "#feed", "Live")
        try:
            async with on.world.call() as phone:
                agent = await on.session()
                seen = {}
                for words in ("One.", "Two.", EVIL):
                    await agent.user_said(words)
                    for tab in (first, second):
                        await aside(browser.driver.switch_to.window, tab)
                        await aside(shows, browser, ".words", words)
                        seen[tab] = await aside(transcript, browser)
                assert seen[first] == seen[second] == ["One.", "Two.", EVIL]
                await phone.hang_up()
            for tab in (first, second):
                await aside(browser.driver.switch_to.window, tab)
                await aside(shows, browser, ".call .state", "Caller hung up")
                # What a stranger said is text, whatever it looks like.
                assert "Console" in browser.driver.title
        finally:
            await aside(browser.driver.switch_to.window, second)
            await aside(browser.driver.close)
            await aside(browser.driver.switch_to.window, first)


async def test_dialling(browser: Browser, tmp_path: Path) -> None:
    """Errors are shown where they belong, and a number that is right is called."""
    standin = TwilioStandIn()
    agents = {"sales": {"numbers": [OWN_NUMBER], "greeting": "Sales!"}}
    public = {"public_url": "https://voice.example.com"}
    async with stage(browser, tmp_path, agents=agents, server=public) as on:
        bridge = on.world.app.extensions["bridge"]
        bridge.twilio = TwilioRest(ACCOUNT_SID, AUTH_TOKEN, transport=standin.transport())

        def fill_in() -> None:
            browser.open(on.world.base_url)
            shows(browser, "#feed", "Live")
            browser.click("#dial")
            browser.find("#dial-to").send_keys("12")
            browser.find("#dial-from").send_keys(OWN_NUMBER)
            browser.find("#dial-agent").send_keys("sales")
            browser.click("dialog fieldset .button")
            name, value = browser.all(".variable input")
            name.send_keys("first_name")
            value.send_keys("Ada")
            browser.click("dialog .button.primary")
            shows(browser, "dialog [role=alert]", "expected a phone number")
            assert browser.find("#dial-to").get_attribute("aria-invalid") == "true"
            assert browser.focused() == "Number to call"
            browser.pictures("console-dial")
            assert standin.calls == {}
            browser.find("#dial-to").send_keys("\b\b+15551234567")
            browser.click("dialog .button.primary")
            browser.until(lambda: not browser.all("dialog"))
            shows(browser, ".row", "+15551234567")
            shows(browser, ".row", "Queued")
            # The refusal is on the console, as Chromium has it; nothing else is.
            assert all("422" in complaint for complaint in browser.complaints())

        await aside(fill_in)
        (call,) = standin.calls.values()
        assert call.asked("To") == "+15551234567"
        assert "Ada" in call.asked("Twiml" if "Twiml" in dict(call.form) else "Url")


async def test_with_a_token_the_page_asks_for_it_once(browser: Browser, tmp_path: Path) -> None:
    async with stage(browser, tmp_path) as on:
        bridge = on.world.app.extensions["bridge"]
        bridge._secrets = Secrets(deepgram_api_key="dg-test-key", api_token="the-operators-token")

        def sign_in() -> None:
            browser.open(on.world.base_url, token="")
            browser.until(lambda: browser.all("dialog.sign-in"))
            assert browser.text("#feed") == "Connecting"
            browser.find("#sign-in-token").send_keys("the-operators-token\n")
            shows(browser, "#feed", "Live")
            shows(browser, "#live", "No live calls")
            browser.open(on.world.base_url, token="")
            shows(browser, "#feed", "Live")
            assert not browser.all("dialog")
            assert all("401" in complaint for complaint in browser.complaints())
            browser.run("sessionStorage.clear()")

        await aside(sign_in)


async def test_the_printed_address_opens_the_page_and_leaves_no_token_in_it(
    browser: Browser, tmp_path: Path
) -> None:
    async with stage(browser, tmp_path) as on:

        def look() -> None:
            browser.open(on.world.base_url)
            shows(browser, "#feed", "Live")
            assert browser.driver.current_url == f"{on.world.base_url}/"
            # The address of another run, in the same tab: the page is loaded again, and asks.
            browser.open(f"{on.world.base_url}/", token="of-another-run")
            browser.until(lambda: browser.all("dialog.sign-in"))
            assert browser.driver.current_url == f"{on.world.base_url}/"
            assert all("401" in complaint for complaint in browser.complaints())

        await aside(look)


async def test_trouble_is_told(browser: Browser, tmp_path: Path) -> None:
    async with stage(browser, tmp_path) as on:
        bridge = on.world.app.extensions["bridge"]
        await aside(browser.open, on.world.base_url)
        await aside(shows, browser, "#feed", "Live")
        bridge.loop_stalled(100.25)  # on a busy machine it may have stalled by itself, too
        await aside(shows, browser, ".tile", "100.")
        assert any(text.endswith(" s in total") for text in await aside(browser.texts, ".tile"))
        async with on.world.call() as phone:
            await on.session()
            bridge.begin_drain()
            await aside(shows, browser, "#alerts", "The server is stopping")
            await aside(shows, browser, ".tile", "Draining")
            await aside(browser.pictures, "console-draining")
            await phone.hang_up()
        await on.world.quiet()


async def test_what_another_worker_carries_is_said_to_be_there(
    browser: Browser, tmp_path: Path
) -> None:
    async with stage(browser, tmp_path, server={"workers": 2}) as on:
        recorder = on.world.app.extensions["bridge"].recorder
        record = CallRecord(call_sid="CA" + "e" * 32, started_at=datetime.now(UTC), caller="+1555")
        recorder.begin(record)
        await recorder.writer.settle()
        await aside(browser.open, on.world.base_url)
        await aside(shows, browser, "#live", "One more call is live in another worker process")
        await aside(shows, browser, ".row", "Other worker")
        await aside(shows, browser, ".tile", "in this one of 2 workers")
        record.outcome = "idle"
        recorder.finish(record)
        await recorder.writer.settle()
        await aside(shows, browser, ".row", "No one spoke")  # at the next look at the records
        await aside(shows, browser, "#live", "No live calls.")


async def test_many_calls_come_closed_and_open_by_key(browser: Browser, tmp_path: Path) -> None:
    async with stage(browser, tmp_path) as on:
        await aside(browser.open, on.world.base_url)
        async with AsyncExitStack() as calls:
            for number in range(6):
                phone = on.world.phone(from_number=f"+1555010010{number}")
                await calls.enter_async_context(phone.place_call(on.world.base_url))
                agent = await on.session(number)
                await agent.user_said(f"This is caller number {number}.")
            await aside(shows, browser, ".call .last", "This is caller number 5.")

            def look() -> None:
                browser.until(lambda: len(browser.all(".call")) == 6)
                assert len(browser.all(".call[open]")) == 3
                browser.pictures("console-many")
                browser.run("document.querySelector('.call:last-child summary').focus()")
                browser.type("\n")
                shows(browser, ".call:last-child .line .words", "This is caller number 5.")

            await aside(look)


async def test_a_lost_connection_is_told_and_what_was_known_is_marked(
    browser: Browser, tmp_path: Path
) -> None:
    """Nothing on the page goes on as if the server were there; all is as before when it is back."""
    async with stage(browser, tmp_path) as on, on.world.call():
        await on.session()
        offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}

        def look() -> None:
            browser.open(on.world.base_url)
            shows(browser, "#feed", "Live")
            browser.until(lambda: browser.all(".call"))
            browser.cdp("Network.enable")
            browser.cdp("Network.emulateNetworkConditions", offline=True, **offline)
            try:
                assert browser.texts("#alerts .notice") == []
                browser.run("dropEvents()")
                shows(browser, "#feed", "No connection")
                shows(browser, "#alerts", "The connection to the server was lost at")
                shows(browser, ".tile", "Unknown")
                assert browser.all("main.stale .call")
                clock = browser.text(".call .clock")
                browser.pictures("console-lost")
                browser.run("return new Promise(done => setTimeout(done, 2100))")
                assert browser.text(".call .clock") == clock
            finally:
                browser.cdp("Network.emulateNetworkConditions", offline=False, **offline)
            shows(browser, "#feed", "Live")
            shows(browser, ".tile", "Taking calls")
            browser.until(lambda: not browser.all(".stale") and not browser.all(".notice"))
            browser.complaints()  # that requests failed

        with browser.before_scripts(EVENTS_CAN_BE_DROPPED):
            await aside(look)


async def test_a_link_to_a_live_call_leads_to_its_card(browser: Browser, tmp_path: Path) -> None:
    """On the page that is opened with it, and on one that is open; the record comes later."""
    async with stage(browser, tmp_path) as on:
        async with AsyncExitStack() as calls:
            for number in range(5):
                phone = await calls.enter_async_context(on.world.call())
                agent = await on.session(number)
                await agent.user_said(f"This is caller number {number}.")
            card = f".call[data-sid='{phone.call_sid}']"

            def look() -> None:
                browser.open(f"{on.world.base_url}/")  # signs in
                shows(browser, "#feed", "Live")
                for reload in ("", "location.reload()"):
                    browser.run(f"location.hash = '{phone.call_sid}'; {reload}")
                    shows(browser, f"{card}[open] .line .words", "This is caller number 4.")
                    browser.until(lambda: "#" not in browser.driver.current_url)
                    assert not browser.all("dialog")

            await aside(look)
            await phone.hang_up()
            await aside(shows, browser, f".row[data-sid='{phone.call_sid}']", "Caller hung up")
            await aside(browser.run, f"location.hash = '{phone.call_sid}'")
            await aside(shows, browser, "dialog .words", "This is caller number 4.")
