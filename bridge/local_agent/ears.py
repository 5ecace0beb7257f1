"""Speech recognition: when the caller speaks, and which known phrase it was.

Only the speech workers import this: pocketsphinx holds the GIL while it works.

Three recognisers process the same speech. The first knows the dialogue's phrases only: it is good
at them, but hears one of them in everything. The second knows general English, the third only
sounds; both are weak, but when their results sound like the phrase, the phrase is accepted.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pocketsphinx  # type: ignore[import-untyped]

from bridge.local_agent.events import Recognised, Setup, SetupError, Started
from bridge.local_agent.phones import MAX_DISTANCE, Pronunciations, distance
from bridge.local_agent.sound import PHONE_RATE, Upsampler, ulaw_to_samples

# WebRTC's detector: its strictest mode, since noise on the line must not hold a turn open.
_VAD_MODE = 3
_WINDOW_SECONDS = 0.03
_ONSET_WINDOWS = 3  # 90 ms of consecutive voice is speech, less is a click
# The effect of the phone band on every sound, as cepstral means. With it the first words of a call
# are recognised as well as later ones, when the recognisers have adapted by themselves.
_CHANNEL = "48,4,-5,10,-4,-5,3,-9,-2,2,-1,5,-2"
# The beam of the recogniser for general English. A tenth of the default is almost as accurate at
# less than half the work, which keeps a worker faster than real time.
_NARROW = {"maxhmmpf": 3000, "maxwpf": 10}
# In the recognisers' results: the number of a pronunciation, silence, noises.
_MARKS = re.compile(r"\(\d+\)|<[^>]*>|\[[^\]]*\]|\+[A-Z]+\+|\bSIL\b")
_PREROLL_WINDOWS = 12  # words begin softly, before the detector triggers


class Ears:
    """Recognises the caller's speech in µ-law at 8 kHz, in pieces of any size.

    Raises SetupError when a word of the grammar has no pronunciation.
    """

    def __init__(self, setup: Setup) -> None:
        model = Path(pocketsphinx.get_model_path()) / "en-us"
        dictionary = model / "cmudict-en-us.dict"
        self._pronunciations = Pronunciations.read(dictionary, setup.pronunciations)
        if unknown := [w for w in setup.words if not self._pronunciations.phones(w)]:
            raise SetupError(
                f"no pronunciation for {', '.join(sorted(unknown))}; use other words, or add "
                'it under [pronunciations], such as gnocchi = "N Y OW K IY"'
            )
        common = {"hmm": str(model / "en-us"), "dict": str(dictionary), "loglevel": "FATAL"}
        self._phrases = pocketsphinx.Decoder(lm=None, bestpath=False, **common)
        for word, phones in setup.pronunciations.items():
            self._phrases.add_word(word, phones, False)
        self._phrases.add_jsgf_string("dialogue", setup.grammar)
        self._phrases.activate_search("dialogue")
        self._english = pocketsphinx.Decoder(
            lm=str(model / "en-us.lm.bin"), fwdflat=False, **_NARROW, **common
        )
        self._sounds = pocketsphinx.Decoder(
            lm=None,
            dict=None,
            allphone=str(model / "en-us-phone.lm.bin"),
            lw=2.0,
            beam=1e-20,
            pbeam=1e-20,
            hmm=common["hmm"],
            loglevel="FATAL",
        )
        self._decoders = (self._phrases, self._english, self._sounds)
        for decoder in self._decoders:
            decoder.set_cmn(_CHANNEL)
        self._vad = pocketsphinx.Vad(_VAD_MODE, PHONE_RATE, _WINDOW_SECONDS)
        self._window = self._vad.frame_bytes // 2  # in samples, and so in bytes of µ-law
        self._hangover = round(setup.hangover * PHONE_RATE / self._window)
        self._longest = round(setup.longest_turn * PHONE_RATE / self._window)
        self._rest = b""
        self._position = 0  # windows processed
        self._run = 0  # consecutive windows that indicate a change of state
        self._recent: deque[Any] = deque(maxlen=_PREROLL_WINDOWS)
        self._began = 0
        self._upsampler = Upsampler()
        self.speaking = False

    def hear(self, ulaw: bytes) -> Iterator[Started | Recognised]:
        """Yield the events in this piece of the caller's audio, in order."""
        data = self._rest + ulaw
        whole = len(data) - len(data) % self._window
        self._rest = data[whole:]
        for at in range(0, whole, self._window):
            found = self._take(data[at : at + self._window])
            if found is not None:
                yield found

    def end_turn(self) -> Recognised | None:
        """End the caller's turn by force; None if the caller is not speaking."""
        return self._end() if self.speaking else None

    def _take(self, ulaw: bytes) -> Started | Recognised | None:
        samples = ulaw_to_samples(ulaw)
        voice = self._vad.is_speech(samples.tobytes())
        self._position += 1
        if not self.speaking:
            self._recent.append(samples)
            self._run = self._run + 1 if voice else 0
            return self._begin() if self._run >= _ONSET_WINDOWS else None
        self._feed(samples)
        self._run = 0 if voice else self._run + 1
        if self._run >= self._hangover or self._position - self._began >= self._longest:
            return self._end()
        return None

    def _begin(self) -> Started:
        self.speaking = True
        self._began = self._position - self._run
        self._run = 0
        self._upsampler = Upsampler()
        for decoder in self._decoders:
            decoder.start_utt()
        for samples in self._recent:
            self._feed(samples)
        self._recent.clear()
        return Started(self._seconds(self._began))

    def _feed(self, samples: Any) -> None:
        data = self._upsampler.feed(samples).tobytes()
        for decoder in self._decoders:
            decoder.process_raw(data, False, False)

    def _end(self) -> Recognised:
        begun = time.perf_counter()
        for decoder in self._decoders:
            decoder.end_utt()
        phrase, dictation = _text(self._phrases), _text(self._english)
        wanted = self._pronunciations.of_text(phrase)
        heard = (self._pronunciations.of_text(dictation), _text(self._sounds).split())
        apart = sum(distance(wanted, sounds) for sounds in heard) / len(heard)
        ended = self._position - self._run
        self.speaking = False
        self._run = 0
        return Recognised(
            phrase if phrase and apart <= MAX_DISTANCE else "",
            dictation,
            round(apart, 3),
            self._seconds(self._began),
            self._seconds(ended),
            round(time.perf_counter() - begun, 4),
        )

    def _seconds(self, windows: int) -> float:
        return round(float(windows * self._window / PHONE_RATE), 3)


def _text(decoder: Any) -> str:
    """Return the words of the best hypothesis, without markers."""
    found = decoder.hyp()
    return " ".join(_MARKS.sub(" ", found.hypstr).split()) if found else ""
