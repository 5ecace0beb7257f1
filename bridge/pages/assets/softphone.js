// The softphone's page: what the buttons do, and what is shown of the call.
//
// The voice goes over the media socket as Twilio's would (line.js). What Twilio's protocol has no
// messages for comes from the control API: the transcript as events, typed words as requests.

import { Line } from "./line.js";
import { api, ApiError, stream } from "./session.js";
import { NoMicrophone, Sound } from "./sound.js";

const $ = (id) => document.getElementById(id);

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
const MICROPHONE = {
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
const FIRST_PHRASES = 12;
const SHOWN_KEY = 180; // ms a key looks pressed

let call = null;

class SoftphoneCall {
  constructor() {
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

  async place() {
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
      this.#connect(answer);
    } catch (error) {
      if (this.over) return;
      const words = error instanceof ApiError ? error.message : "The call could not be placed.";
      this.end("No call", words);
    }
  }

  #connect(answer) {
    this.sid = answer.call_sid;
    showPhrases(answer.phrases ?? []);
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
    const without = $("without-microphone");
    show("starting", "Waiting for the microphone…");
    const asked = setTimeout(() => (without.hidden = false), 1500); // a prompt may be overlooked
    const gaveUp = new Promise((resolve) => {
      without.onclick = resolve;
      this.abort.signal.addEventListener("abort", resolve, { once: true });
    });
    const opened = this.sound.openMicrophone({ raw }).catch((error) => {
      if (this.over) return;
      say(MICROPHONE[error instanceof NoMicrophone ? error.kind : "failed"]);
    });
    await Promise.race([opened, gaveUp]);
    clearTimeout(asked);
    without.hidden = true;
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

  // The call is over; the page says so.
  end(words, problem = "", { follow = false } = {}) {
    if (this.over) return;
    this.over = true;
    this.sound.close();
    this.line?.hangUp();
    if (!follow) this.abort.abort();
    if (problem) say(problem, "bad");
    if (call === this) call = null;
    show("idle", words);
    showLevels({ caller: 0, agent: 0 });
  }

  press(digit) {
    this.line?.press(digit);
    const key = document.querySelector(`.key[data-digit="${CSS.escape(digit)}"]`);
    key?.classList.add("pressed");
    setTimeout(() => key?.classList.remove("pressed"), SHOWN_KEY);
  }

  mute() {
    this.muted = !this.muted;
    this.sound.send({ type: "mute", on: this.muted });
    $("mute").setAttribute("aria-pressed", String(this.muted));
    $("mute").textContent = this.muted ? "Unmute" : "Mute";
  }

  async write(words) {
    await api(`/calls/${this.sid}/say`, { method: "POST", body: { text: words } });
  }
}

// ---- what is shown ------------------------------------------------------------------------------

// `phase` is "idle", "starting" or "live".
function show(phase, words) {
  const before = document.body.dataset.call;
  document.body.dataset.call = phase;
  if ($("state").textContent !== words) $("state").textContent = words;
  if (before === phase) return;
  const [idle, live] = [phase === "idle", phase === "live"];
  const hadFocus = document.activeElement;
  $("call").hidden = !idle;
  $("hang-up").hidden = idle;
  $("mute").hidden = !live;
  $("keypad").hidden = !live;
  for (const control of document.querySelectorAll(".key, .chip, #words, #send")) {
    control.disabled = !live;
  }
  if (live) {
    document.body.dataset.called = "";
    $("mute").setAttribute("aria-pressed", "false");
    $("mute").textContent = "Mute";
  }
  // The button that was pressed is gone; whoever uses the keyboard stays where they were.
  if (hadFocus === $("call")) $("hang-up").focus();
  else if (idle && hadFocus && hadFocus !== document.body && (hadFocus.hidden || hadFocus.disabled)) {
    $("call").focus();
  }
}

function say(words, kind = "") {
  const notice = $("notice");
  notice.className = `notice ${kind}`.trim();
  notice.textContent = words;
  notice.hidden = !words;
}

function showLevels({ caller, agent }) {
  $("level-caller").style.setProperty("--level", loudness(caller).toFixed(3));
  $("level-agent").style.setProperty("--level", loudness(agent).toFixed(3));
  $("orb").style.setProperty("--level", loudness(agent).toFixed(3));
}

// 0 to 1 for -50 to -8 dB: about what an ear makes of it.
function loudness(rms) {
  const decibels = 20 * Math.log10(rms + 1e-9);
  return Math.min(1, Math.max(0, (decibels + 50) / 42));
}

const WHO = { caller: "You", agent: "Agent", keypad: "You pressed" };
const FATE = { cut: "interrupted", unheard: "not heard" };

// The transcript from line `from` on. A line that stays is changed in place, so that nobody is read
// it twice.
function showLines(lines, from = 0) {
  const list = $("lines");
  while (list.children.length > lines.length) list.lastElementChild.remove();
  for (let index = from; index < lines.length; index++) {
    const line = lines[index];
    const item = list.children[index] ?? list.appendChild(newLine());
    const same = line.role === lines[index - 1]?.role && !FATE[line.heard] ? "same" : "";
    item.className = `line ${line.role} ${line.heard} ${same}`;
    const [who, words] = item.children;
    setText(who.children[0], WHO[line.role] ?? line.role);
    setText(who.children[1], clock(line.at));
    setText(who.children[2], FATE[line.heard] ?? "");
    setText(words, line.words);
  }
  $("empty").hidden = lines.length > 0;
  followLines();
}

// Whoever has not scrolled back sees the newest line, whatever becomes of the window.
let following = true;

function followLines() {
  const scroll = $("scroll");
  if (following) scroll.scrollTop = scroll.scrollHeight;
}

function newLine() {
  const item = document.createElement("li");
  const who = document.createElement("p");
  who.className = "who";
  who.append(
    document.createElement("span"),
    Object.assign(document.createElement("span"), { className: "numbers" }),
    Object.assign(document.createElement("span"), { className: "fate" }),
  );
  item.append(who, Object.assign(document.createElement("p"), { className: "words" }));
  return item;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function showPhrases(phrases) {
  $("chips").replaceChildren(
    ...phrases.map((phrase) => {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.className = "chip";
      chip.disabled = true;
      // A slot's example stands in ⟨⟩, which nobody says.
      chip.textContent = phrase.replace(/[⟨⟩]/g, "");
      chip.onclick = () => write(chip.textContent);
      const item = document.createElement("li");
      item.append(chip);
      return item;
    }),
  );
  $("phrases").hidden = phrases.length === 0;
  showAllPhrases(false);
}

// The first few, and all of them for who wants to know.
function showAllPhrases(all) {
  const chips = [...$("chips").children];
  for (const chip of chips.slice(FIRST_PHRASES)) chip.hidden = !all;
  $("all-phrases").hidden = chips.length <= FIRST_PHRASES;
  $("all-phrases").setAttribute("aria-expanded", String(all));
  $("all-phrases").textContent = all ? "Show fewer" : `Show all ${chips.length}`;
}

function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

// ---- what is done -------------------------------------------------------------------------------

function place() {
  if (call) return;
  say(window.isSecureContext ? "" : MICROPHONE.insecure);
  showLines([]);
  setText($("elapsed"), "0:00");
  call = new SoftphoneCall();
  call.place();
}

async function write(words) {
  if (!call?.line?.open) return false;
  try {
    await call.write(words);
    return true;
  } catch (error) {
    say(`Not sent: ${error.message}`, "bad");
    return false;
  }
}

$("scroll").onscroll = ({ target }) => {
  following = target.scrollHeight - target.scrollTop - target.clientHeight < 60;
};
new ResizeObserver(followLines).observe($("scroll"));

$("call").onclick = place;
$("hang-up").onclick = () => call?.hangUp();
$("mute").onclick = () => call?.mute();
$("all-phrases").onclick = ({ target }) => {
  showAllPhrases(target.getAttribute("aria-expanded") !== "true");
};
$("keypad").onclick = () => {
  const open = document.body.classList.toggle("keys-open");
  $("keypad").setAttribute("aria-expanded", String(open));
};

for (const key of document.querySelectorAll(".key")) {
  key.onclick = () => call?.press(key.dataset.digit);
}

$("write").onsubmit = async (event) => {
  event.preventDefault();
  const field = $("words");
  const words = field.value.trim();
  if (!words) return;
  field.value = "";
  if (!(await write(words))) field.value = words;
  field.focus();
};

// The keyboard's digits are the keypad's, unless something is being typed.
document.addEventListener("keydown", (event) => {
  if (!call?.line?.open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest?.("input, textarea, dialog") || !/^[0-9*#]$/.test(event.key)) return;
  event.preventDefault();
  call.press(event.key);
});

setInterval(() => {
  if (call?.began) setText($("elapsed"), clock((performance.now() - call.began) / 1000));
}, 250);

// A page that goes away hangs up, as a phone does whose battery is taken out; and more politely.
window.addEventListener("pagehide", () => call?.hangUp());
document.addEventListener("visibilitychange", () => call?.sound.resume());
document.addEventListener("pointerdown", () => call?.sound.resume());

if (!window.isSecureContext) say(MICROPHONE.insecure);
