// One call of the softphone: the voice goes over the media socket as Twilio's would (line.js). What
// Twilio's protocol has no messages for comes from the control API: the transcript as events, typed
// words as requests.

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
  listening: "Listening",
  thinking: "Thinking…",
  speaking: "Speaking",
  reconnecting: "Reconnecting to the agent…",
  ending: "Saying goodbye…",
};

const OUTCOMES = {
  caller_hung_up: "You hung up",
  agent_ended: "The agent ended the call",
  transferred: "The agent transferred the call, and a softphone cannot follow it",
  agent_unreachable: "The agent could not be reached",
  agent_failed: "The agent failed",
  idle: "Nobody said anything, so the call was ended",
  max_duration: "The call reached its longest time",
  operator_hung_up: "An operator ended the call",
  server_shutdown: "The server is stopping",
  phone_lost: "The connection was lost",
  protocol_error: "The server did not accept the call",
  internal_error: "Something went wrong in the server",
};

const TYPE = "You can still call, and type what you would say.";
export const MICROPHONE = {
  insecure:
    "Browsers keep the microphone from a page that was not opened by https or as localhost. " +
    `${TYPE} To speak, open this page by https, or on the server itself.`,
  refused:
    "The browser does not let this page use the microphone. " +
    `${TYPE} To speak, allow the microphone beside the address and call again.`,
  missing: `No microphone was found. ${TYPE} To speak, connect one and call again.`,
  busy: `Another program holds the microphone. ${TYPE} To speak, close it there and call again.`,
  failed: `The microphone does not work in this browser. ${TYPE}`,
  lost: `The microphone is gone. ${TYPE}`,
};
const NO_SOUND = "This browser gives the page no sound, so the agent cannot be heard. Read it here.";

const OUTCOME_WITHIN = 2000; // ms after the line is closed, for the server to say why
const OVERLOOKED = 1500; // ms after which who was asked for the microphone may not have seen it

export class SoftphoneCall {
  // Must be made while a click is being handled. `onEnded` is called once, when the call is over.
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
    // Now, while the click is being handled.
    this.sound = new Sound(
      (message) => this.#fromSound(message),
      () => say(MICROPHONE.lost),
    );
  }

  // Place it. `onPhrase` is called with a phrase of the agent's that was pressed.
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
      if (!this.over) say(`There is no live transcript: ${error.message}`);
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
      say("Another process of the server carries this call, so there is no transcript here.");
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
    if (!opened) return this.end("No call", "The server did not take the call. Try again.");
    if (this.outcome || this.abort.signal.aborted) return this.#conclude();
    // The reason is on its way, unless the server is gone.
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
    // The last words, and what became of them, are still to come.
    setTimeout(() => this.abort.abort(), OUTCOME_WITHIN);
    this.end(was, "", { follow: this.line !== null });
  }

  // Show nothing more of it: another call has begun.
  forget() {
    this.abort.abort();
  }

  // The call is over; the page says so.
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
