"""A recording of both sides of a call: stereo WAV, the caller left, the agent right.

Three classes. `Timeline` (sans-I/O) aligns the two sides as the caller heard them: the agent sends
faster than real time, and audio that was cleared before it was played was never heard. `WavFile`
(blocking) is the file. `CallRecording` takes finished stretches from the timeline to the file in a
thread, so that a slow disk causes a gap in the recording and does not affect the call.

The file is playable at any moment, even after the process was killed: about once a second audio is
appended and then the sizes in the header are updated, in this order, so the header never promises
more than there is. http://soundfile.sapp.org/doc/WaveFormat/
"""

from __future__ import annotations

import audioop
import os
import re
import struct
from collections import deque
from contextlib import suppress
from datetime import datetime
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Final

import trio

from bridge.audio import SAMPLE_RATE, SILENCE, seconds
from bridge.log import get_logger
from bridge.one_thread import OneThread

log = get_logger(__name__)

# A stretch is finished when it is this old. Audio that comes later than that is left out.
SETTLED_SECONDS: Final = 1.0
# The times of the caller's audio are exact to within this: a piece continues the one before it,
# unless they are further apart.
JITTER_SECONDS: Final = 0.1
# The longest piece taken at once, so that a long silence is not one long piece of memory.
STRETCH_SECONDS: Final = 5.0
# How far audio may be ahead of its time: the agent's is sent ahead and buffered by Twilio; the
# phone sends in real time.
AGENT_AHEAD_SECONDS: Final = 180.0
CALLER_AHEAD_SECONDS: Final = 2.0
# The most audio that waits for a slow disk; beyond it, silence takes its place. 480 KB.
BACKLOG_SECONDS: Final = 30.0

# For writing the last bytes at the end of a call, and for opening the file at its start.
CLOSE_SECONDS: Final = 1.0
OPEN_SECONDS: Final = 2.0

_NAME = re.compile(r"[A-Za-z0-9]{1,64}")
_FILE = re.compile(r"[A-Za-z0-9]{1,64}(-[0-9]{1,2})?\.wav")
_MOST_OF_A_CALL: Final = 20  # files; one for each stream of the call

_LONGEST: Final = round(STRETCH_SECONDS * SAMPLE_RATE)
_HEADER_BYTES: Final = 44
_BYTES_PER_FRAME: Final = 4  # two channels of 16 bits
_DATA_LIMIT: Final = 0xFFFF_FFFF - _HEADER_BYTES  # what the header can say: 37 hours


class RecordingError(Exception):
    """The call cannot be recorded. One line."""


class Stretch:
    """A stretch of time: µ-law of both sides, of equal length."""

    __slots__ = ("agent", "caller")

    def __init__(self, caller: bytes, agent: bytes) -> None:
        self.caller = caller
        self.agent = agent

    @property
    def size(self) -> int:
        """The number of samples in memory."""
        return len(self.caller)

    def pcm(self) -> bytes:
        """Interleaved 16-bit samples."""
        left = audioop.tostereo(audioop.ulaw2lin(self.caller, 2), 2, 1, 0)
        right = audioop.tostereo(audioop.ulaw2lin(self.agent, 2), 2, 0, 1)
        return audioop.add(left, right, 2)


class Gap:
    """A number of samples that were lost, and are silence in the file."""

    __slots__ = ("samples",)
    size = 0

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def pcm(self) -> bytes:
        """Interleaved 16-bit samples."""
        return bytes(self.samples * _BYTES_PER_FRAME)


class Timeline:
    """Both sides on one axis, in samples from the start. Times are seconds from the start.

    A stretch that has been taken is never changed. Audio that would belong to it is dropped, and so
    is audio that is ahead of its time by more than the limits above.
    """

    def __init__(self) -> None:
        self._caller = bytearray()
        self._caller_ends = 0  # where the caller's next audio belongs, from the start
        self._agent = bytearray()
        self._taken = 0

    def caller(self, audio: bytes, at: float) -> None:
        """The caller's audio spoken at `at`, by the phone's timestamps on our clock (see
        `bridge.twilio.media_clock`), so that audio that was held back is put where it belongs."""
        now = _samples(at)
        if abs(now - self._caller_ends) > JITTER_SECONDS * SAMPLE_RATE:
            self._caller_ends = now
        audio = audio[: now + round(CALLER_AHEAD_SECONDS * SAMPLE_RATE) - self._caller_ends]
        begin = self._caller_ends - self._taken
        self._caller_ends += len(audio)
        audio, begin = audio[max(0, -begin) :], max(0, begin)
        self._caller += SILENCE * (begin - len(self._caller))
        self._caller[begin : begin + len(audio)] = audio

    def agent(self, audio: bytes, at: float) -> None:
        """This was sent to the phone at `at`; it plays after what was sent before it."""
        now, end = _samples(at), self._taken + len(self._agent)
        if now > end:
            self._agent += SILENCE * (now - end)
            end = now
        room = now + round(AGENT_AHEAD_SECONDS * SAMPLE_RATE) - end
        self._agent += audio[: max(0, room)]

    def cleared(self, at: float) -> None:
        """`clear` was sent at `at`: what had not been played by then never is."""
        del self._agent[max(0, _samples(at) - self._taken) :]

    def settled(self, at: float) -> Stretch | None:
        """Take the stretch that is finished as of `at`; None if it is shorter than a second. A long
        one comes in pieces, one for each call of this method.
        """
        length = _samples(at - SETTLED_SECONDS) - self._taken
        return self._take(min(length, _LONGEST)) if length >= SAMPLE_RATE else None

    def rest(self, at: float) -> list[Stretch]:
        """Take all that is left when the call is over at `at`."""
        self.cleared(at)
        end = max(len(self._caller), len(self._agent), _samples(at) - self._taken)
        return [self._take(min(_LONGEST, end - done)) for done in range(0, end, _LONGEST)]

    def _take(self, length: int) -> Stretch:
        self._taken += length
        return Stretch(_first(self._caller, length), _first(self._agent, length))


def _samples(at: float) -> int:
    return max(0, round(at * SAMPLE_RATE))


def _first(audio: bytearray, length: int) -> bytes:
    first = bytes(audio[:length])
    del audio[:length]
    return first.ljust(length, SILENCE)


class WavFile:
    """A WAV file that grows: 8 kHz, two channels, 16-bit PCM. Blocking; raises OSError.

    Readable by its owner only, and always a new file: an existing one is never opened.
    """

    def __init__(self, folder: Path, call_sid: str) -> None:
        """Raises RecordingError for a SID that cannot be part of a file's name."""
        if not _NAME.fullmatch(call_sid):
            raise RecordingError("the call's SID cannot be a file's name")
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        self.path, self._file = _new_file(folder, call_sid)
        self._data = 0
        try:
            self._write_header()
        except OSError:
            self._file.close()
            raise

    def append(self, pcm: bytes) -> None:
        """Add samples. After an error the file is as playable as it was."""
        if self._data + len(pcm) > _DATA_LIMIT:
            return
        _write_at(self._file, pcm, _HEADER_BYTES + self._data)
        self._data += len(pcm)
        self._write_header()

    def close(self) -> None:
        """Flush it to the disk and close it. Idempotent."""
        if self._file.closed:
            return
        try:
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def _write_header(self) -> None:
        rate, frame = SAMPLE_RATE, _BYTES_PER_FRAME
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, rate, rate * frame, frame, 16)
        data = struct.pack("<4sI", b"data", self._data)
        riff = struct.pack("<4sI4s", b"RIFF", _HEADER_BYTES - 8 + self._data, b"WAVE")
        _write_at(self._file, riff + form + data, 0)


def _new_file(folder: Path, call_sid: str) -> tuple[Path, FileIO]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    for number in range(1, _MOST_OF_A_CALL + 1):
        path = folder / (f"{call_sid}.wav" if number == 1 else f"{call_sid}-{number}.wav")
        try:
            return path, FileIO(os.open(path, flags, 0o600), "w")
        except FileExistsError:
            continue
    raise RecordingError(f"{call_sid} has {_MOST_OF_A_CALL} recordings already")


def _write_at(file: FileIO, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file.fileno(), rest, offset)
        offset += written
        rest = rest[written:]


def purge(folder: Path, older_than: datetime) -> int:
    """Delete recordings last written before `older_than`. Returns how many. Blocking; raises
    OSError.
    """
    removed = 0
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        for entry in entries:
            # Only files named like ours, and never through a link.
            if not _FILE.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_mtime < older_than.timestamp():
                with suppress(FileNotFoundError):  # another worker purges as well
                    os.unlink(entry.path)
                    removed += 1
    return removed


class CallRecording:
    """Records one call. Times are seconds from the call's start, by one clock: for the caller's
    audio when it was spoken, for the rest when it happens.

    `caller`, `agent`, `cleared` and `finish` return at once and never raise. `run` is a task of the
    call: it writes about once a second. When it is cancelled or `finish` was called, it writes the
    rest, within CLOSE_SECONDS and shielded. A disk that fails, or any other error, ends the
    recording and is logged; it never ends the call, nor delays its end by more than CLOSE_SECONDS.
    """

    def __init__(self, folder: Path, call_sid: str) -> None:
        self._folder = folder
        self._call_sid = call_sid
        self._timeline = Timeline()
        # Filled here, emptied by the thread: what an abandoned thread has left, the next one takes.
        self._ready = _Ready()
        self._last = 0.0
        self._wake = trio.Event()
        self._over = False
        self._file: WavFile | None = None
        self._thread = OneThread()
        self.path: Path | None = None
        self.lost_seconds = 0.0

    def caller(self, audio: bytes, at: float) -> None:
        """See `Timeline.caller`."""
        self._advance(at)
        self._timeline.caller(audio, at)

    def agent(self, audio: bytes, at: float) -> None:
        """See `Timeline.agent`."""
        self._advance(at)
        self._timeline.agent(audio, at)

    def cleared(self, at: float) -> None:
        """See `Timeline.cleared`."""
        self._advance(at)
        self._timeline.cleared(at)

    def finish(self, at: float) -> None:
        """The call is over; `run` writes the rest and returns. A second time changes nothing."""
        if not self._over:
            self._over = True
            for stretch in self._timeline.rest(at):
                self._add(stretch)
            self._wake.set()

    def _advance(self, at: float) -> None:
        self._last = max(self._last, at)
        while (stretch := self._timeline.settled(self._last)) is not None:
            # Also after the end, so that the timeline does not grow; what is taken is dropped then.
            if not self._over:
                self._add(stretch)
                self._wake.set()

    def _add(self, stretch: Stretch) -> None:
        if self._ready.size + stretch.size > BACKLOG_SECONDS * SAMPLE_RATE:
            self.lost_seconds += seconds(stretch.size)
            self._ready.put(Gap(stretch.size))
        else:
            self._ready.put(stretch)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until the call is over. Started at once: opening the file delays no call."""
        task_status.started()
        try:
            if not await self._open():
                return
            while not self._over:
                await self._wake.wait()
                self._wake = trio.Event()
                await self._write(last=False)
        except Exception as error:
            self._ended_early(error)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
                await self._close()

    async def _open(self) -> bool:
        new_file = partial(WavFile, self._folder, self._call_sid)
        try:
            # If it is abandoned, an empty file may stay behind, which retention deletes.
            self._file = await self._thread.run(new_file, within=OPEN_SECONDS)
        except RecordingError as error:
            log.error("call not recorded", call_sid=self._call_sid, error=str(error))
            return False
        except trio.TooSlowError:
            raise OSError(f"no answer within {OPEN_SECONDS:g} s") from None
        self.path = self._file.path
        return True

    async def _write(self, *, last: bool) -> None:
        assert self._file is not None
        # The call's end abandons it, and `_close` then waits for it, CLOSE_SECONDS at most.
        await self._thread.run(partial(_write, self._file, self._ready, last))

    async def _close(self) -> None:
        """Write what is left and close the file."""
        self.finish(self._last)
        if self._file is None:
            return
        try:
            await self._write(last=True)
        except trio.Cancelled:
            # The abandoned thread has the file; its last reference closes it.
            self._ended_early(OSError("the disk hangs"))
            raise
        except Exception as error:
            self._ended_early(error)
        finally:
            if self.lost_seconds:
                seconds_lost = round(self.lost_seconds, 1)
                log.warning("recording has gaps", call_sid=self._call_sid, seconds=seconds_lost)

    def _ended_early(self, error: Exception) -> None:
        # An error that is not the disk's is a bug, or a system without threads: it needs a stack.
        unexpected = None if isinstance(error, OSError) else error
        log.error(
            "recording ends early", call_sid=self._call_sid, error=str(error), exc_info=unexpected
        )


class _Ready:
    """Stretches on their way from the loop to the thread, in order."""

    def __init__(self) -> None:
        self._stretches: deque[Stretch | Gap] = deque()
        # Each is changed by one side only, so that no lock is needed.
        self._put = 0
        self._taken = 0

    def __len__(self) -> int:
        return len(self._stretches)

    @property
    def size(self) -> int:
        """Samples in memory."""
        return self._put - self._taken

    def put(self, stretch: Stretch | Gap) -> None:
        self._put += stretch.size
        self._stretches.append(stretch)

    def take(self) -> Stretch | Gap:
        stretch = self._stretches.popleft()
        self._taken += stretch.size
        return stretch


def _write(file: WavFile, ready: _Ready, last: bool) -> None:
    try:
        while ready:
            file.append(ready.take().pcm())
    finally:
        if last:
            file.close()
