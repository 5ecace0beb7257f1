// The softphone page: handlers of its buttons, keys and fields.

import { MICROPHONE, SoftphoneCall } from "./softphone-call.js";
import {
  followLines,
  noteScrolling,
  say,
  showAllPhrases,
  showElapsed,
  showLines,
} from "./softphone-view.js";

const $ = (id) => document.getElementById(id);

let call = null;
let latest = null; // the last call placed; its outcome may still arrive

function place() {
  if (call) return;
  latest?.forget();
  say(window.isSecureContext ? "" : MICROPHONE.insecure);
  showLines([]);
  showElapsed(0);
  call = latest = new SoftphoneCall(() => (call = null));
  call.place(write);
}

async function write(words) {
  if (!call?.live) return false;
  try {
    await call.write(words);
    return true;
  } catch (error) {
    say(`Not sent: ${error.message}`, "bad");
    return false;
  }
}

$("scroll").onscroll = noteScrolling;
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

// Digits typed on the keyboard press the keypad, unless a text field has the focus.
document.addEventListener("keydown", (event) => {
  if (!call?.live || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest?.("input, textarea, dialog") || !/^[0-9*#]$/.test(event.key)) return;
  event.preventDefault();
  call.press(event.key);
});

setInterval(() => {
  if (call?.began) showElapsed((performance.now() - call.began) / 1000);
}, 250);

// Closing the page hangs up.
window.addEventListener("pagehide", () => call?.hangUp());
document.addEventListener("visibilitychange", () => call?.sound.resume());
document.addEventListener("pointerdown", () => call?.sound.resume());

if (!window.isSecureContext) say(MICROPHONE.insecure);
