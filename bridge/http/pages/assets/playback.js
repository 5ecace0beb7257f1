// The phone's playback buffer: µ-law in, samples at the context's rate out. A mark returns when the
// audio before it has been played, or at once on clear. Does no I/O.
//
// Positions count samples at 8 kHz since the call began. What is played lies between `played` and
// `queued`; a mark is the position behind which it was sent.

import { Interpolator, PHONE_RATE } from "./resampler.js";
import { DECODED } from "./ulaw.js";

// Audio that arrives in real time must not run dry between two messages: after an underrun this much
// is buffered before playing, but for no longer than that much audio takes to arrive.
const LEAD = 0.06 * PHONE_RATE;

// Audio cut off in mid-wave clicks; a fade this short avoids the click and is not heard.
const FADE = 0.004 * PHONE_RATE;

// Ten minutes; beyond that the newest audio is dropped. No sane agent sends that far ahead.
const LONGEST = 600 * PHONE_RATE;

export class Playback {
  // `rate` is the context's; `onMark` is called with the name of each mark that is due.
  constructor(rate, onMark) {
    this.step = PHONE_RATE / rate;
    this.onMark = onMark;
    this.interpolator = new Interpolator();
    this.samples = new Float32Array(PHONE_RATE * 16);
    this.first = 0; // position of samples[0]
    this.queued = 0;
    this.played = 0; // with a fraction
    this.marks = [];
    this.playing = false;
    this.waited = 0;
    this.fade = 1;
    this.endsAt = Infinity; // where a cleared voice has faded out
  }

  // Seconds of audio still to be played.
  get waiting() {
    return Math.max(0, this.queued - this.played) / PHONE_RATE;
  }

  // Append µ-law bytes.
  add(bytes) {
    if (this.endsAt !== Infinity) this.#forget();
    const room = LONGEST - (this.queued - Math.floor(this.played));
    const count = Math.max(0, Math.min(bytes.length, room));
    this.#makeRoom(count);
    const at = this.queued - this.first;
    for (let i = 0; i < count; i++) this.samples[at + i] = DECODED[bytes[i]] / 32768;
    this.queued += count;
  }

  // Report `name` when everything queued so far has been played.
  mark(name) {
    if (this.endsAt !== Infinity) this.#forget();
    this.marks.push({ name, at: this.queued });
    this.#giveBack();
  }

  // Discard what has not been played. All marks are reported, in order.
  clear() {
    const marks = this.marks;
    this.marks = [];
    if (this.playing) this.endsAt = Math.min(this.queued, Math.ceil(this.played + FADE));
    else this.#forget();
    for (const { name } of marks) this.onMark(name);
  }

  // Fill `output` with the next samples, or silence.
  pull(output) {
    output.fill(0);
    if (!this.playing && !this.#mayBegin(output.length * this.step)) return;
    const end = Math.min(this.queued, this.endsAt);
    const sampleAt = (index) =>
      index >= this.first && index < this.queued ? this.samples[index - this.first] : 0;
    let i = 0;
    for (; i < output.length && this.played < end; i++) {
      const base = Math.floor(this.played);
      let value = this.interpolator.value(base, this.played - base, sampleAt);
      if (this.endsAt !== Infinity) value *= Math.min(1, (this.endsAt - this.played) / FADE);
      output[i] = value;
      this.played += this.step;
    }
    if (this.played >= end) {
      this.playing = false;
      this.waited = 0;
      if (this.endsAt !== Infinity) this.#forget();
      else this.played = this.queued; // what began in mid-sample begins anew
    }
    this.#giveBack();
  }

  #mayBegin(passed) {
    const waiting = this.queued - this.played;
    if (waiting <= 0) return false;
    this.waited += passed;
    const complete = this.marks.length > 0; // nothing need follow
    this.playing = complete || waiting >= LEAD || this.waited >= LEAD;
    return this.playing;
  }

  #giveBack() {
    while (this.marks.length && this.marks[0].at <= this.played) {
      this.onMark(this.marks.shift().name);
    }
  }

  #forget() {
    this.played = this.queued;
    this.first = this.queued;
    this.endsAt = Infinity;
    this.playing = false;
    this.waited = 0;
  }

  // Room for `count` samples behind `queued`: drop the past that no kernel reaches, or grow.
  #makeRoom(count) {
    if (this.queued - this.first + count <= this.samples.length) return;
    const keepFrom = Math.max(this.first, Math.floor(this.played) - this.interpolator.half);
    const kept = this.samples.subarray(keepFrom - this.first, this.queued - this.first);
    const needed = kept.length + count;
    if (needed <= this.samples.length) {
      this.samples.copyWithin(0, keepFrom - this.first, this.queued - this.first);
    } else {
      const larger = new Float32Array(2 * needed);
      larger.set(kept);
      this.samples = larger;
    }
    this.first = keepFrom;
  }
}
