// The engine on the audio thread, where the page's scripts cannot delay it.

import { Engine } from "./engine.js";

class PhoneProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.engine = new Engine(sampleRate, (message) => this.port.postMessage(message));
    this.port.onmessage = (event) => this.engine.receive(event.data);
  }

  process([microphone], [speaker]) {
    this.engine.process(microphone[0] ?? null, speaker[0]);
    return true;
  }
}

registerProcessor("phone", PhoneProcessor);
