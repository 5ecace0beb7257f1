"""The softphone in a real browser, against the real server and an agent that follows a script."""

from __future__ import annotations

import audioop
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from selenium.webdriver.common.keys import Keys

from bridge.testing.agent.server import AgentSession
from tests.browser.driver import NARROW, WIDE, Browser
from tests.browser.house import House, house, simulated
from tests.browser.looks import faults, unnamed, unreadable
from tests.browser.softphone import SILENT, SOON, softphone
from tests.world import QUIET, SECRETS, settings

# Silence between the end of what was interrupted and the next reply, in seconds.
THINKING = 0.4

TOKEN = "api-token-5EC237-0123456789"


def voice(seconds: float) -> bytes:
    """Something that can be heard all the time, as µ-law."""
    samples = (int(9000 * math.sin(2 * math.pi * 440 * i / 8000)) for i in range(800))
    return audioop.lin2ulaw(struct.pack("<800h", *samples), 2) * round(seconds * 10)


async def waiter(agent: AgentSession) -> None:
    """Greets, tells a long story when spoken to, and says goodbye to "bye"."""
    await agent.say("Good evening.", voice(0.5))
    while True:
        words = await agent.wait_for_user_message()
        await trio.sleep(THINKING)
        if "bye" in words.lower():
            await agent.call_functions([{"name": "end_call"}])
            await agent.say("Goodbye!", voice(0.3))
            return
        await agent.say(f"About {words.strip('.?')}.", voice(20 if "story" in words else 0.4))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    database = tmp_path_factory.mktemp("records") / "calls.db"
    using = settings(records={"url": f"sqlite:///{database}"})
    # Its story is all on the phone when it is interrupted, as a real agent's would be.
    agent = simulated(waiter, msgspec.structs.replace(QUIET, speed=20.0))
    with house(agent, using=using) as here:
        yield here


def test_a_call_from_beginning_to_end(browser: Browser, here: House) -> None:
    with softphone(browser, here) as phone:
        assert phone.state == "Ready when you are"
        phone.call()
        phone.said("Agent", "Good evening.")
        browser.until(lambda: phone.messages("out", "mark"), why="the greeting is not heard")
        phone.write("A long story?")
        phone.said("Agent", "About A long story.")
        browser.until(lambda: len(phone.messages("in", "mark")) == 2, why="it is not all sent")
        browser.until(lambda: phone.loudness()[-1][1] > SILENT, why="the story is not heard")
        phone.write("Enough.")
        phone.said("Agent", "About Enough.")
        browser.click('.key[data-digit="4"]')
        browser.click('.key[data-digit="#"]')
        phone.said("You pressed", "4")
        phone.said("Agent", "About I pressed 4")
        browser.until(lambda: browser.text("#elapsed") != "0:00")
        # The words interrupted the story; the keys may have interrupted a reply, too.
        assert phone.interruptions()
        assert max(phone.interruptions()) < SOON
        sent = [mark for _, mark in phone.messages("in", "mark")]
        browser.until(lambda: [m for _, m in phone.messages("out", "mark")] == sent)
        assert [digit for _, digit in phone.messages("out", "dtmf")] == ["4", "#"]
        browser.pictures("softphone-call")
        phone.hang_up()
        assert phone.state == "You hung up"
        frames = browser.run("return probe.frames")
        browser.pictures("softphone-ended")
    record = phone.record()
    assert record.outcome == "caller_hung_up"
    assert record.caller == "softphone"
    assert record.barge_ins >= 1
    # 50 a second, silence included; a busy machine may leave some out.
    assert record.seconds * 25 < frames < record.seconds * 57
    said = [(line.role, line.words, line.heard) for line in record.transcript]
    assert said[:3] == [
        ("agent", "Good evening.", "heard"),
        ("caller", "A long story?", "heard"),
        ("agent", "About A long story.", "cut"),
    ]
    assert ("caller", "Enough.", "heard") in said
    assert ("keypad", "4", "heard") in said


def test_the_agent_says_goodbye(browser: Browser, here: House) -> None:
    with softphone(browser, here) as phone:
        phone.call()
        phone.said("Agent", "Good evening.")
        phone.write("Bye.")
        browser.until(lambda: phone.state == "The agent ended the call")
        assert browser.find("#call").is_displayed()
        phone.said("Agent", "Goodbye!")
    assert phone.record().outcome == "agent_ended"


def test_a_second_call_begins_anew(browser: Browser, here: House) -> None:
    with softphone(browser, here) as phone:
        for _ in range(2):
            phone.call()
            phone.said("Agent", "Good evening.")
            assert len(phone.lines) == 1
            phone.hang_up()


def test_leaving_the_page_hangs_up(browser: Browser, here: House) -> None:
    with softphone(browser, here) as phone:
        phone.call()
        phone.said("Agent", "Good evening.")
        browser.open(f"{here.address}/")
        here.quiet()
    assert phone.record().outcome == "caller_hung_up"


def test_a_full_house_is_said(browser: Browser, here: House) -> None:
    with softphone(browser, here) as phone:
        here.bridge.entrance.admits_until = 0
        try:
            browser.click("#call")
            browser.until(lambda: "busy" in phone.notice, why=phone.notice)
            assert phone.state == "No call"
            assert browser.find("#call").is_displayed()
        finally:
            here.bridge.entrance.admits_until = math.inf
        browser.complaints()  # that a request was answered 503


# ---- the microphone ------------------------------------------------------------------------------


def test_a_refused_microphone_is_said_and_typing_works(browser: Browser, here: House) -> None:
    browser.microphone("denied", here.address)
    with softphone(browser, here) as phone:
        phone.call()
        assert "blocks the microphone for this page" in phone.notice
        phone.write("A table?")
        phone.said("Agent", "About A table.")
        browser.pictures("softphone-refused")
        phone.hang_up()
    assert phone.record().outcome == "caller_hung_up"


FAILING = """
    navigator.mediaDevices.getUserMedia = () =>
      Promise.reject(new DOMException("for the test", "%s"));
"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("NotFoundError", "No microphone was found."),
        ("NotReadableError", "Another program is using the microphone."),
        ("InvalidStateError", "The microphone does not work"),
    ],
)
def test_what_is_wrong_with_the_microphone_is_said(
    browser: Browser, here: House, error: str, words: str
) -> None:
    with browser.before_scripts(FAILING % error), softphone(browser, here) as phone:
        phone.call()
        assert words in phone.notice
        assert "type what you would say" in phone.notice
        phone.said("Agent", "Good evening.")
        phone.hang_up()


def test_the_browsers_question_can_be_left_unanswered(browser: Browser, here: House) -> None:
    never = "navigator.mediaDevices.getUserMedia = () => new Promise(() => {});"
    with browser.before_scripts(never), softphone(browser, here) as phone:
        browser.click("#call")
        browser.until(lambda: browser.find("#without-microphone").is_displayed())
        assert phone.state == "Waiting for the microphone…"
        browser.click("#without-microphone")
        phone.connected()
        phone.said("Agent", "Good evening.")
        phone.hang_up()


def test_muted_nothing_is_heard_of_the_caller(
    browser: Browser, here: House, microphone: Path
) -> None:
    fill(microphone, 30)
    with softphone(browser, here) as phone:
        phone.call()
        level = "return +document.querySelector('#level-caller').style.getPropertyValue('--level')"
        browser.until(lambda: browser.run(level) > 0.3, why="the voice is not shown")
        browser.click("#mute")
        browser.until(lambda: browser.run(level) == 0, why="the voice is not muted")
        assert browser.find("#mute").get_attribute("aria-pressed") == "true"
        browser.click("#mute")
        browser.until(lambda: browser.run(level) > 0.3, why="the voice does not come back")
        phone.hang_up()


def fill(microphone: Path, seconds: float) -> None:
    """Let the microphone hear a tone."""
    import wave

    with wave.open(str(microphone), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(audioop.ulaw2lin(voice(seconds), 2))


def test_where_the_worklet_does_not_load_both_sides_are_heard_all_the_same(
    browser: Browser, here: House, microphone: Path
) -> None:
    fill(microphone, 30)
    broken = "AudioWorklet.prototype.addModule = () => Promise.reject(new Error('for the test'));"
    with browser.before_scripts(broken), softphone(browser, here) as phone:
        phone.call()
        browser.until(lambda: any(peak > SILENT for _, peak in phone.loudness()))
        level = "return +document.querySelector('#level-caller').style.getPropertyValue('--level')"
        browser.until(lambda: browser.run(level) > 0.3, why="the microphone is not heard")
        browser.until(lambda: phone.messages("out", "mark"), why="no mark comes back")
        assert phone.notice == ""
        phone.hang_up()
        assert all("deprecated" in line for line in browser.complaints())


def test_without_any_sound_the_call_is_held_in_writing(browser: Browser, here: House) -> None:
    none = "window.AudioContext = function () { throw new Error('for the test'); };"
    with browser.before_scripts(none), softphone(browser, here) as phone:
        phone.call()
        phone.said("Agent", "Good evening.")
        assert "No audio output" in phone.notice
        browser.until(lambda: phone.messages("out", "mark"), why="no mark comes back")
        phone.write("A table?")
        phone.said("Agent", "About A table.")
        began, frames = browser.run("return [performance.now(), probe.frames]")
        browser.until(lambda: browser.run("return probe.frames") >= frames + 50)
        seconds = (browser.run("return performance.now()") - began) / 1000
        assert seconds > 0.8, "a frame every 20 ms and no faster"
        phone.hang_up()
    assert phone.record().outcome == "caller_hung_up"


# ---- from elsewhere ------------------------------------------------------------------------------


def test_from_elsewhere_with_the_token_and_without_https(browser: Browser, tmp_path: Path) -> None:
    """No secure context: no microphone, no AudioWorklet; the agent is heard and typed to."""
    secrets = replace(SECRETS, api_token=TOKEN)
    with house(simulated(waiter), using=settings(), secrets=secrets) as here:
        with softphone(browser, here, host="far.example", token="") as phone:
            assert "https" in phone.notice
            browser.click("#call")
            browser.until(lambda: browser.all("dialog.sign-in"), why="no sign-in form")
            browser.type("wrong" + Keys.ENTER)
            browser.until(
                lambda: any(browser.texts("dialog .notice")), why="a wrong token is taken"
            )
            browser.picture("softphone-sign-in")
            browser.type(TOKEN + Keys.ENTER)
            phone.connected()
            phone.said("Agent", "Good evening.")
            browser.until(lambda: any(peak > SILENT for _, peak in phone.loudness()))
            phone.write("A table?")
            phone.said("Agent", "About A table.")
            assert TOKEN not in browser.driver.page_source
            phone.hang_up()
            others = [
                line
                for line in browser.complaints()
                if "401" not in line and "ScriptProcessorNode is deprecated" not in line
            ]
            assert others == []


def test_when_there_is_no_server(browser: Browser, here: House) -> None:
    with softphone(browser, here) as phone:
        browser.cdp("Network.enable")
        offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        browser.cdp("Network.emulateNetworkConditions", offline=True, **offline)
        try:
            browser.click("#call")
            browser.until(lambda: phone.notice == "The server cannot be reached.")
            assert phone.state == "No call"
            browser.pictures("softphone-error")
        finally:
            browser.cdp("Network.emulateNetworkConditions", offline=False, **offline)
        browser.complaints()  # that a request failed
        phone.call()
        assert phone.notice == ""
        phone.said("Agent", "Good evening.")
        phone.hang_up()


# ---- for everybody -------------------------------------------------------------------------------


def test_the_keyboard_is_enough(browser: Browser, here: House) -> None:
    with softphone(browser, here) as phone:
        browser.tab_to("Call")
        browser.type(Keys.ENTER)
        phone.connected()
        phone.said("Agent", "Good evening.")
        assert browser.focused() == "Hang up", "the focus is where it was"
        browser.type("7#")  # anywhere but in a text field they are the keypad's
        phone.said("You pressed", "7")
        browser.tab_to("1")
        browser.type(Keys.SPACE)
        browser.type("#")
        phone.said("You pressed", "1")
        browser.tab_to("What you would say")
        browser.type("Two for 8?" + Keys.ENTER)
        phone.said("Agent", "About Two for 8.")
        assert browser.focused() == "What you would say"
        pressed = [digit for _, digit in phone.messages("out", "dtmf")]
        assert pressed == ["7", "#", "1", "#"], "what is typed into the field is no key"
        browser.tab_to("Hang up")
        browser.type(Keys.ENTER)
        here.quiet()
        assert browser.focused() == "Call"


def test_everything_has_a_name_and_can_be_read(browser: Browser, here: House) -> None:
    """Idle and in a call; light and dark, wide and narrow."""
    browser.microphone("denied", here.address)  # so that there is a notice
    with softphone(browser, here) as phone:
        assert_for_everybody(browser)
        phone.call()
        phone.said("Agent", "Good evening.")
        phone.write("A long story?")
        phone.said("Agent", "About A long story.")
        phone.write("Enough.")
        phone.said("Agent", "About Enough.")
        browser.click('.key[data-digit="4"]')
        browser.click('.key[data-digit="#"]')
        phone.said("You pressed", "4")
        assert_for_everybody(browser)
        phone.hang_up()


def assert_for_everybody(browser: Browser) -> None:
    for width in (WIDE, NARROW):
        for dark in (False, True):
            browser.look(width=width, dark=dark)
            assert unreadable(browser) == []
            assert faults(browser) == []
        assert unnamed(browser) == []
        over = browser.run("return document.documentElement.scrollWidth - innerWidth")
        assert over <= 0, "nothing sticks out to the side"
    browser.look()


def test_events_are_announced_to_screen_readers(browser: Browser, here: House) -> None:
    with softphone(browser, here) as phone:
        phone.call()
        phone.said("Agent", "Good evening.")
        roles: dict[str, Any] = {
            selector: browser.find(selector).aria_role
            for selector in ("#state", "#log", "#elapsed", "#keys")
        }
        assert roles == {
            "#state": "status",
            "#log": "log",
            "#elapsed": "timer",
            "#keys": "group",
        }
        assert browser.run("return document.documentElement.lang") == "en"
        headings = browser.run(
            "return [...document.querySelectorAll('h1')].map((h) => h.textContent)"
        )
        assert headings == ["Talk to the agent"]
        phone.hang_up()
