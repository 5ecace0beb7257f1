// The softphone's elements. Every function may be called at any time.

import { h, setText } from "./dom.js";
import { clock } from "./words.js";

const FIRST_PHRASES = 12;
const SHOWN_KEY = 180; // ms for which a key looks pressed

const $ = (id) => document.getElementById(id);

// `phase` is "idle", "starting" or "live".
export function show(phase, words) {
  const before = document.body.dataset.call;
  document.body.dataset.call = phase;
  setText($("state"), words);
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
    showMuted(false);
  }
  // The focused button is now hidden: move the focus to the one that replaces it.
  if (hadFocus === $("call")) $("hang-up").focus();
  else if (idle && hadFocus && hadFocus !== document.body && (hadFocus.hidden || hadFocus.disabled)) {
    $("call").focus();
  }
}

export function say(words, kind = "") {
  const notice = $("notice");
  notice.className = `notice ${kind}`.trim();
  notice.textContent = words;
  notice.hidden = !words;
}

export function showLevels({ caller, agent }) {
  $("level-caller").style.setProperty("--level", loudness(caller).toFixed(3));
  $("level-agent").style.setProperty("--level", loudness(agent).toFixed(3));
  $("orb").style.setProperty("--level", loudness(agent).toFixed(3));
}

// Map -50 to -8 dB to 0 to 1: roughly perceived loudness.
function loudness(rms) {
  const decibels = 20 * Math.log10(rms + 1e-9);
  return Math.min(1, Math.max(0, (decibels + 50) / 42));
}

const WHO = { caller: "You", agent: "Agent", keypad: "You pressed" };
const FATE = { cut: "interrupted", unheard: "not heard" };

// Show the transcript from line `from` on. Lines are changed in place, so that a screen reader does
// not repeat them.
export function showLines(lines, from = 0) {
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

// Unless the reader has scrolled back, the newest line stays visible when the window is resized.
let following = true;

export function noteScrolling() {
  const scroll = $("scroll");
  following = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
}

export function followLines() {
  const scroll = $("scroll");
  if (following) scroll.scrollTop = scroll.scrollHeight;
}

function newLine() {
  return h(
    "li",
    {},
    h("p", { class: "who" }, h("span"), h("span", { class: "numbers" }), h("span", { class: "fate" })),
    h("p", { class: "words" }),
  );
}

// The phrases the agent understands, as buttons; `onChosen` gets the phrase that was pressed.
export function showPhrases(phrases, onChosen) {
  $("chips").replaceChildren(
    ...phrases.map((phrase) => {
      const words = phrase.replace(/[⟨⟩]/g, ""); // they mark a slot's example
      const onclick = () => onChosen(words);
      const chip = h("button", { type: "button", class: "chip", disabled: true, onclick }, words);
      return h("li", {}, chip);
    }),
  );
  $("phrases").hidden = phrases.length === 0;
  showAllPhrases(false);
}

// Show all phrases, or only the first few.
export function showAllPhrases(all) {
  const chips = [...$("chips").children];
  for (const chip of chips.slice(FIRST_PHRASES)) chip.hidden = !all;
  $("all-phrases").hidden = chips.length <= FIRST_PHRASES;
  $("all-phrases").setAttribute("aria-expanded", String(all));
  $("all-phrases").textContent = all ? "Show fewer" : `Show all ${chips.length}`;
}

export function showMuted(muted) {
  $("mute").setAttribute("aria-pressed", String(muted));
  $("mute").textContent = muted ? "Unmute" : "Mute";
}

export function showKey(digit) {
  const key = document.querySelector(`.key[data-digit="${CSS.escape(digit)}"]`);
  key?.classList.add("pressed");
  setTimeout(() => key?.classList.remove("pressed"), SHOWN_KEY);
}

export function showElapsed(seconds) {
  setText($("elapsed"), clock(seconds));
}

// Show a button that calls `onChosen`, for when the browser's microphone prompt is overlooked; null
// hides it.
export function offerToGoOn(onChosen) {
  $("without-microphone").hidden = onChosen === null;
  $("without-microphone").onclick = onChosen;
}
