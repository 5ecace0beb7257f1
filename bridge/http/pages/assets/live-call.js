// The card of one live call on the console, updated until the call has ended.

import { Transcript, functionList } from "./conversation.js";
import { h, setChildren, setText } from "./dom.js";
import { queueLine, replyPlot } from "./plots.js";
import {
  brief,
  clock,
  ending,
  median,
  outcomeWords,
  replies,
  replySeconds,
  reported,
  state,
  typedReplySeconds,
  who,
} from "./words.js";

const SAMPLES = 61; // of each queue, four a second: the last 15 seconds

// The smallest full scale of each queue's plot, in ms, so that normal jitter stays flat.
const UPLINK_CEILING = 500;
const PLAYBACK_CEILING = 2000;

export class LiveCall {
  // `call` is the call as in the events, which keep changing it. `say(this, words)` has the agent
  // speak and resolves to whether it will; `transfer(this)` and `hangUp(this)` ask and then act.
  constructor(call, { open, say, transfer, hangUp }) {
    this.call = call;
    this.over = false;
    this._beganAt = performance.now() - 1000 * call.seconds;
    this._uplink = [];
    this._playback = [];
    this._transcript = new Transcript();
    this._state = h("span", { class: "badge state" });
    this._clock = h("span", { class: "numbers clock" });
    this._last = h("span", { class: "last muted" });
    this._replies = h("figure", { class: "plot-of" });
    this._queues = h("div", { class: "queues" });
    this._functions = h("div", {});
    this._facts = h("dl", { class: "facts" });
    this._compose = compose((words) => say(this, words));
    this._foot = h(
      "div",
      { class: "foot" },
      call.transfer_targets?.length
        ? h("button", { class: "button", type: "button", onclick: () => transfer(this) }, "Transfer")
        : null,
      h("button", { class: "button danger", type: "button", onclick: () => hangUp(this) }, "Hang up"),
    );
    this.element = h(
      "details",
      { class: "card call", open },
      h(
        "summary",
        {},
        this._state,
        h(
          "span",
          { class: "people" },
          h("strong", { class: "numbers" }, who(call.caller)),
          h("span", { class: "muted numbers to" }, call.called ? `to ${who(call.called)}` : ""),
        ),
        this._last,
        this._clock,
      ),
      h(
        "div",
        { class: "body" },
        h("div", { class: "spoken" }, this._transcript.element, this._compose),
        h(
          "div",
          { class: "figures" },
          this._replies,
          this._queues,
          this._functions,
          this._facts,
          this._foot,
        ),
      ),
    );
    this.element.dataset.sid = call.call_sid;
    this.element.addEventListener("toggle", () => this.show());
    this.show();
  }

  // Replace what is known of this call with a new snapshot.
  replace(call) {
    this.call = call;
    this._beganAt = performance.now() - 1000 * call.seconds;
    this.show();
  }

  // The call has ended; the card stays for a while and shows the outcome.
  end({ outcome, reason, seconds }) {
    Object.assign(this.call, { outcome, reason, seconds, state: "ending" });
    this.over = true;
    this.element.classList.add("over");
    this._compose.hidden = true;
    this._foot.hidden = true;
    this.show();
  }

  show() {
    const { call } = this;
    const [words, kind] = this.over ? ending(call) : state(call);
    setText(this._state, words);
    this._state.className = `badge state ${kind}`;
    const last = call.transcript.at(-1);
    setText(this._last, last ? (last.words ?? "") : "");
    this.tick();
    if (!this.element.open) return;
    this._transcript.show(call.transcript);
    const times = replySeconds(call);
    const caption = times.length
      ? [fact("median", brief(median(times))), fact("last", brief(times.at(-1)))]
      : [h("span", { class: "muted small" }, "none yet")];
    this._replies.replaceChildren(
      h("figcaption", {}, h("h3", {}, "Reply times"), h("span", { class: "trio" }, caption)),
      replyPlot(call),
    );
    setChildren(
      this._functions,
      call.functions.length ? [h("h3", {}, "Functions"), functionList(call.functions)] : [],
    );
    this._facts.replaceChildren(...this._listFacts());
    this._showQueues();
  }

  // Expand the card and bring it into view.
  reveal() {
    this.element.open = true;
    this.element.scrollIntoView({ block: "nearest" });
    this.element.querySelector("summary").focus();
  }

  // Update the clock.
  tick() {
    const seconds = this.over ? this.call.seconds : (performance.now() - this._beganAt) / 1000;
    setText(this._clock, clock(seconds));
  }

  // Record the lengths of the queues; called four times a second.
  sample() {
    if (this.over) return;
    for (const [samples, ms] of [
      [this._uplink, this.call.uplink_ms],
      [this._playback, this.call.playback_ms],
    ]) {
      samples.push(ms);
      if (samples.length > SAMPLES) samples.shift();
    }
    if (this.element.open) this._showQueues();
  }

  _showQueues() {
    const { uplink_ms: uplink, playback_ms: playback } = this.call;
    this._queues.replaceChildren(
      h("h3", {}, "Buffered audio"),
      queue("to agent", uplink, this._uplink, UPLINK_CEILING),
      queue("to caller", playback, this._playback, PLAYBACK_CEILING),
    );
  }

  _listFacts() {
    const { call } = this;
    const facts = [["Agent ready in", brief(call.setup_seconds)]];
    const [typed, agents] = [replies(typedReplySeconds(call)), reported(call)];
    if (typed) facts.push(["Replies to typing", typed]);
    if (agents) facts.push(["Deepgram reports", agents]);
    if (call.agent) facts.push(["Agent", call.agent]);
    if (call.direction === "outbound-api") facts.push(["Direction", "Outbound"]);
    if (call.barge_ins) facts.push(["Barge-ins", String(call.barge_ins)]);
    if (call.reconnects) facts.push(["Agent reconnects", String(call.reconnects)]);
    if (call.dropped_bytes) facts.push(["Audio dropped", brief(call.dropped_bytes / 8000)]);
    if (this.over) facts.push(["Ended", `${outcomeWords(call.outcome)}: ${call.reason}`]);
    return facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", { class: "numbers" }, value)]);
  }
}

// The field for words that the agent is to say. They stay in it until they are taken.
function compose(say) {
  const words = h("input", {
    class: "field",
    type: "text",
    maxlength: 1000,
    autocomplete: "off",
    enterkeyhint: "send",
    placeholder: "Have the agent say",
    "aria-label": "Have the agent say",
  });
  const button = h("button", { class: "button", type: "submit" }, "Say");
  const form = h("form", { class: "compose" }, words, button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!words.value.trim() || button.disabled) return;
    button.disabled = true;
    if (await say(words.value)) words.value = "";
    button.disabled = false;
  });
  return form;
}

function fact(name, value) {
  return h("span", { class: "small" }, h("span", { class: "muted" }, `${name} `), h("b", { class: "numbers" }, value));
}

function queue(name, ms, samples, ceiling) {
  return h(
    "div",
    { class: "queue-of" },
    h("span", { class: "small muted" }, name),
    h("b", { class: "small numbers" }, brief((ms ?? 0) / 1000)),
    queueLine(samples, SAMPLES, ceiling),
  );
}
