// One call of the softphone. Audio goes over the media socket as Twilio's would (line.js). The control
// API provides what Twilio's protocol lacks: the transcript as events, and typed input.

import { Line } from "./line.js";
import { api, ApiError, stream } from "./session.js";
import {
  offerToGoOn,
  say,
  show,
  showKey,
  showLevels,
  showLines,
  showMuted,
  showPhrases,
} from "./softphone-view.js";
import { NoMicrophone, Sound } from "./sound.js";

const STATES = {
  connecting: "Connecting to the agent…",
  listening: "Agent is listening",
  thinking: "Agent is thinking…",
  speaking: "Agent is speaking",
  reconnecting: "Reconnecting to the agent…",
  ending: "Ending the call…",
};

const OUTCOMES = {
  caller_hung_up: "You hung up",
  agent_ended: "The agent ended the call",
  transferred: "The agent transferred the call",
  handed_over: "The agent transferred the call; the softphone cannot follow a transfer",
  agent_unreachable: "The agent could not be reached",
  agent_failed: "The agent failed",
  idle: "The call ended because no one spoke",
  max_duration: "The call reached its time limit",
  operator_hung_up: "An operator ended the call",
  server_shutdown: "The server is stopping",
  phone_lost: "The connection was lost",
  protocol_error: "The server rejected the call",
  internal_error: "The server had an internal error",
  server_lost: "The server process was lost",
};

const TYPE = "You can still call and type what you would say.";
export const MICROPHONE = {
  insecure:
    "Browsers allow the microphone only on pages opened over https or from localhost. " +
    `${TYPE} To speak, open this page over https, or on the server itself.`,
  refused:
    "The browser blocks the microphone for this page. " +
    `${TYPE} To speak, allow it via the icon in the address bar and call again.`,
  missing: `No microphone was found. ${TYPE} To speak, connect one and call again.`,
  busy: `Another program is using the microphone. ${TYPE} To speak, close that program and call again.`,
  failed: `The microphone does not work in this browser. ${TYPE}`,
  lost: `The microphone was disconnected. ${TYPE}`,
};
const NO_SOUND = "No audio output: this browser cannot play the agent. Read the transcript instead.";

const OUTCOME_WITHIN = 2000; // ms after the line has closed, for the outcome to arrive
const OVERLOOKED = 1500; // ms after which the browser's microphone prompt may have been overlooked

export class SoftphoneCall {
  // Construct it in a click handler. `onEnded` is called once, when the call has ended.
  constructor(onEnded) {
    this.onEnded = onEnded;
    this.abort = new AbortController();
    this.line = null;
    this.sid = "";
    this.began = 0;
    this.state = "connecting";
    this.outcome = "";
    this.reason = "";
    this.muted = false;
    this.transcript = [];
    this.over = false;
    // Browsers start audio only in a click handler.
    this.sound = new Sound(
      (message) => this.#fromSound(message),
      () => say(MICROPHONE.lost),
    );
  }

  // Place the call. `onPhrase` is called with the phrase whose button was pressed.
  async place(onPhrase) {
    try {
      await Promise.all([this.sound.start(), this.#openMicrophone()]);
      if (this.over) return;
      if (!this.sound.audible) say(NO_SOUND);
      show("starting", "Calling…");
      const agent = new URLSearchParams(location.search).get("agent");
      const answer = await api("/softphone/call", {
        method: "POST",
        body: agent ? { agent } : {},
        signal: this.abort.signal,
      });
      if (this.over) return;
      this.#connect(answer, onPhrase);
    } catch (error) {
      if (this.over) return;
      const words = error instanceof ApiError ? error.message : "The call could not be placed.";
      this.end("No call", words);
    }
  }

  #connect(answer, onPhrase) {
    this.sid = answer.call_sid;
    showPhrases(answer.phrases ?? [], onPhrase);
    this.line = new Line(answer, this.sound, {
      onOpen: () => {
        this.began = performance.now();
        show("live", STATES.connecting);
        this.#follow();
      },
      onClosed: (closed) => this.#lineClosed(closed),
    });
  }

  async #openMicrophone() {
    const raw = new URLSearchParams(location.search).has("raw");
    show("starting", "Waiting for the microphone…");
    let goOn;
    const gaveUp = new Promise((resolve) => (goOn = resolve));
    this.abort.signal.addEventListener("abort", goOn, { once: true });
    const asked = setTimeout(() => offerToGoOn(goOn), OVERLOOKED);
    const opened = this.sound.openMicrophone({ raw }).catch((error) => {
      if (this.over) return;
      say(MICROPHONE[error instanceof NoMicrophone ? error.kind : "failed"]);
    });
    await Promise.race([opened, gaveUp]);
    clearTimeout(asked);
    offerToGoOn(null);
  }

  #fromSound(message) {
    if (message.type === "levels") showLevels(message);
    else this.line?.take(message);
  }

  async #follow() {
    try {
      await stream(`/calls/${this.sid}/events`, (event) => this.#heard(event), {
        signal: this.abort.signal,
      });
    } catch (error) {
      if (!this.over) say(`No live transcript: ${error.message}`);
    }
  }

  #heard({ event, data }) {
    if (this.abort.signal.aborted) return;
    if (event === "snapshot") {
      this.#learn(data.call);
      this.transcript = data.call.transcript;
      showLines(this.transcript);
    } else if (event === "call") {
      this.#learn(data);
    } else if (event === "transcript") {
      this.transcript.length = data.from;
      this.transcript.push(...data.items);
      showLines(this.transcript, data.from);
    } else if (event === "ended") {
      this.#learn(data);
      this.abort.abort();
      if (!this.line?.open) this.#conclude();
    } else if (event === "elsewhere") {
      this.abort.abort();
      say("Another worker process of the server has this call, so no transcript is shown here.");
    }
  }

  #learn(facts) {
    this.state = facts.state ?? this.state;
    this.outcome = facts.outcome || this.outcome;
    this.reason = facts.reason || this.reason;
    if (!this.over && this.line?.open) {
      show("live", facts.caller_speaking ? STATES.listening : (STATES[this.state] ?? ""));
    }
  }

  #lineClosed({ opened }) {
    if (this.over) return;
    if (!opened) return this.end("No call", "The server did not accept the call. Try again.");
    if (this.outcome || this.abort.signal.aborted) return this.#conclude();
    // The outcome follows, unless the server is down.
    setTimeout(() => this.#conclude(), OUTCOME_WITHIN);
  }

  #conclude() {
    if (this.over) return;
    const words = OUTCOMES[this.outcome] ?? OUTCOMES.phone_lost;
    const failed = /unreachable|failed|error|lost/.test(this.outcome || "lost");
    this.end(words, failed && this.reason ? `${words}: ${this.reason}.` : "");
  }

  hangUp() {
    const was = this.line ? OUTCOMES.caller_hung_up : "No call";
    this.line?.hangUp();
    // The last lines of the transcript are still to come.
    setTimeout(() => this.abort.abort(), OUTCOME_WITHIN);
    this.end(was, "", { follow: this.line !== null });
  }

  // Show no more of this call: another one has begun.
  forget() {
    this.abort.abort();
  }

  // Show that the call has ended, and why.
  end(words, problem = "", { follow = false } = {}) {
    if (this.over) return;
    this.over = true;
    this.sound.close();
    this.line?.hangUp();
    if (!follow) this.abort.abort();
    if (problem) say(problem, "bad");
    this.onEnded();
    show("idle", words);
    showLevels({ caller: 0, agent: 0 });
  }

  get live() {
    return Boolean(this.line?.open);
  }

  press(digit) {
    this.line?.press(digit);
    showKey(digit);
  }

  mute() {
    this.muted = !this.muted;
    this.sound.send({ type: "mute", on: this.muted });
    showMuted(this.muted);
  }

  async write(words) {
    await api(`/calls/${this.sid}/say`, { method: "POST", body: { text: words } });
  }
}
