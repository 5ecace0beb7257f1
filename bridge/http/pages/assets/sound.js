// Microphone and loudspeaker: where the engine runs, and what feeds it.
//
// Best is an AudioWorklet. Without a secure context there is none, and no microphone either, but a
// ScriptProcessor still lets the agent be heard. Where no sound can be had at all, a clock keeps the
// call going: silence is sent and marks come back, so that what is typed is answered.

import { Engine } from "./engine.js";

const RUNNING_WITHIN = 2000; // ms until a context that was resumed by a click runs, or never will
const BLOCK = 1024;
const CLOCK_MS = 20;
const CLOCK_RATE = 8000;

// Why there is no microphone. `kind` is "insecure", "refused", "missing", "busy" or "failed".
export class NoMicrophone extends Error {
  constructor(kind, cause) {
    super(kind, { cause });
    this.kind = kind;
  }
}

const KINDS = {
  NotAllowedError: "refused",
  SecurityError: "refused",
  NotFoundError: "missing",
  OverconstrainedError: "missing",
  NotReadableError: "busy",
  AbortError: "busy",
};

export class Sound {
  // Must be made while a click is being handled: browsers let no page begin to sound by itself.
  // `onMessage` gets the engine's messages, `onMicrophoneLost` is called if it is unplugged.
  constructor(onMessage, onMicrophoneLost) {
    this.onMessage = onMessage;
    this.onMicrophoneLost = onMicrophoneLost;
    this.closed = false;
    this.context = null;
    this.stream = null;
    this.node = null;
    this.timer = 0;
    this.post = () => {};
    if (navigator.audioSession) navigator.audioSession.type = "play-and-record"; // Safari's
    try {
      this.context = new AudioContext({ latencyHint: "interactive" });
      this.resumed = this.context.resume();
      this.resumed.catch(() => {});
    } catch {
      this.context = null;
    }
  }

  // Whether anything can be heard.
  get audible() {
    return this.node !== null;
  }

  // Start the engine. Resolves in any case: there is always a clock.
  async start() {
    if (await this.#runs()) {
      try {
        await this.#startWorklet();
      } catch {
        // None here, or one that cannot import a module, as in Firefox before 114.
        this.#startScript();
      }
    }
    if (this.closed) return this.close();
    if (!this.node) this.#startClock();
  }

  // Open the microphone and let it speak. Throws NoMicrophone. `raw` switches the browser's own
  // processing off: for studios and for tests.
  async openMicrophone({ raw = false } = {}) {
    if (!window.isSecureContext || !navigator.mediaDevices?.getUserMedia) {
      throw new NoMicrophone("insecure");
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        audio: {
          channelCount: 1,
          echoCancellation: !raw,
          noiseSuppression: !raw,
          autoGainControl: !raw,
        },
      });
    } catch (error) {
      throw new NoMicrophone(KINDS[error.name] ?? "failed", error);
    }
    if (this.closed) {
      stop(stream);
      return;
    }
    this.stream = stream;
    this.#connect();
    stream.getAudioTracks()[0]?.addEventListener("ended", () => {
      if (!this.closed) this.onMicrophoneLost();
    });
  }

  // A message to the engine.
  send(message) {
    this.post(message);
  }

  // Sound that the system has paused, by a phone call or a locked screen, goes on.
  resume() {
    if (this.context && this.context.state !== "running" && !this.closed) {
      this.context.resume().catch(() => {});
    }
  }

  close() {
    this.closed = true;
    this.post = this.onMessage = () => {};
    clearInterval(this.timer);
    if (this.stream) stop(this.stream);
    this.source?.disconnect();
    this.node?.disconnect();
    if (this.context && this.context.state !== "closed") this.context.close().catch(() => {});
  }

  async #runs() {
    if (!this.context) return false;
    const late = new Promise((resolve) => setTimeout(resolve, RUNNING_WITHIN));
    await Promise.race([this.resumed.catch(() => {}), late]);
    return this.context.state === "running";
  }

  async #startWorklet() {
    await this.context.audioWorklet.addModule(new URL("./phone-worklet.js", import.meta.url));
    const node = new AudioWorkletNode(this.context, "phone", {
      numberOfInputs: 1,
      numberOfOutputs: 1,
      outputChannelCount: [1],
      channelCount: 1,
      channelCountMode: "explicit",
    });
    node.port.onmessage = ({ data }) => this.onMessage(data);
    this.post = (message) => node.port.postMessage(message);
    this.#play(node);
  }

  #startScript() {
    if (!this.context.createScriptProcessor) return;
    const engine = new Engine(this.context.sampleRate, (message) => this.onMessage(message));
    const node = this.context.createScriptProcessor(BLOCK, 1, 1);
    node.onaudioprocess = ({ inputBuffer, outputBuffer }) => {
      engine.process(inputBuffer.getChannelData(0), outputBuffer.getChannelData(0));
    };
    this.post = (message) => engine.receive(message);
    this.#play(node);
  }

  #startClock() {
    const engine = new Engine(CLOCK_RATE, (message) => this.onMessage(message));
    const block = new Float32Array((CLOCK_RATE * CLOCK_MS) / 1000);
    const began = performance.now();
    let done = 0;
    this.post = (message) => engine.receive(message);
    this.timer = setInterval(() => {
      const due = (performance.now() - began) / CLOCK_MS;
      for (; done < due; done++) engine.process(null, block);
    }, CLOCK_MS);
  }

  #play(node) {
    this.node = node;
    node.connect(this.context.destination);
    this.#connect();
  }

  #connect() {
    if (!this.node || !this.stream || this.source) return;
    // Kept, or Firefox throws it away, and falls silent.
    this.source = this.context.createMediaStreamSource(this.stream);
    this.source.connect(this.node);
  }
}

function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}
