// The phone's audio, between microphone, loudspeaker and line. Does no I/O: the owner of the clock
// calls `process` with each block of samples; messages go in by `receive` and out by `post`.
//
//   in   {type: "audio", bytes}         µ-law to play
//        {type: "mark", name}           to be returned when played
//        {type: "clear"}
//        {type: "mute", on}             send silence instead of the microphone
//   out  {type: "frame", bytes}         160 bytes of µ-law, 20 ms of the caller's voice
//        {type: "mark", name}           played, or cleared
//        {type: "levels", caller, agent, waiting}   RMS of the last 50 ms; seconds to be played

import { Playback } from "./playback.js";
import { Decimator } from "./resampler.js";
import { encodeSample } from "./ulaw.js";

const FRAME_BYTES = 160;
const LEVEL_SECONDS = 0.05;

export class Engine {
  constructor(rate, post) {
    this.post = post;
    this.playback = new Playback(rate, (name) => post({ type: "mark", name }));
    this.decimator = new Decimator(rate);
    this.muted = false;
    this.frame = new Uint8Array(FRAME_BYTES);
    this.filled = 0;
    this.silence = new Float32Array(0);
    this.levelSamples = Math.round(rate * LEVEL_SECONDS);
    this.counted = 0;
    this.caller = 0;
    this.agent = 0;
  }

  receive(message) {
    if (message.type === "audio") this.playback.add(message.bytes);
    else if (message.type === "mark") this.playback.mark(message.name);
    else if (message.type === "clear") this.playback.clear();
    else if (message.type === "mute") this.muted = message.on;
  }

  // Process one block: `input` from the microphone (or null), `output` to be filled; same length.
  process(input, output) {
    this.playback.pull(output);
    if (this.silence.length !== output.length) this.silence = new Float32Array(output.length);
    const voice = input && !this.muted ? input : this.silence;
    this.decimator.push(voice, (sample) => {
      this.frame[this.filled++] = encodeSample(sample);
      if (this.filled === FRAME_BYTES) {
        this.filled = 0;
        this.post({ type: "frame", bytes: this.frame.slice() });
      }
    });
    this.#measure(voice, output);
  }

  #measure(voice, output) {
    for (let i = 0; i < output.length; i++) {
      this.caller += voice[i] * voice[i];
      this.agent += output[i] * output[i];
    }
    this.counted += output.length;
    if (this.counted < this.levelSamples) return;
    this.post({
      type: "levels",
      caller: Math.sqrt(this.caller / this.counted),
      agent: Math.sqrt(this.agent / this.counted),
      waiting: this.playback.waiting,
    });
    this.counted = this.caller = this.agent = 0;
  }
}
