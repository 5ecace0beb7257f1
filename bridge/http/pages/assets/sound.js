// Microphone and loudspeaker: they feed the engine and play its output.
//
// An AudioWorklet is preferred. Without a secure context there is neither a worklet nor a microphone,
// but a ScriptProcessor can still play the agent. Without any audio output a timer keeps the call
// alive: it sends silence and returns marks, so typed input is still answered.

import { Engine } from "./engine.js";

const RUNNING_WITHIN = 2000; // ms within which a context resumed by a click must be running
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
  // Construct it in a click handler: browsers do not let a page start audio by itself.
  // `onMessage` gets the engine's messages; `onMicrophoneLost` is called if it is unplugged.
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

  // Whether the agent can be heard.
  get audible() {
    return this.node !== null;
  }

  // Start the engine. Always resolves: the timer is the last resort.
  async start() {
    if (await this.#runs()) {
      try {
        await this.#startWorklet();
      } catch {
        // No AudioWorklet, or one that cannot import modules (Firefox before 114).
        this.#startScript();
      }
    }
    if (this.closed) return this.close();
    if (!this.node) this.#startClock();
  }

  // Open the microphone and connect it. Throws NoMicrophone. `raw` disables the browser's audio
  // processing, for studios and tests.
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

  // Send a message to the engine.
  send(message) {
    this.post(message);
  }

  // Resume audio that the system paused, as for a phone call or a locked screen.
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
    // Keep a reference: Firefox collects the node otherwise, and the call falls silent.
    this.source = this.context.createMediaStreamSource(this.stream);
    this.source.connect(this.node);
  }
}

function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}
