// The two plots of a call, as inline SVG: reply times and buffered audio.

import { svg } from "./dom.js";
import { brief, replies, replySeconds } from "./words.js";

const WIDTH = 280;
const HEIGHT = 52;
const BARS = 40; // the latest turns; more would be hairlines
const QUICK = 0.8; // pauses up to this feel natural between people
const SLOW = 1.5; // from here on callers ask "hello?"

// One bar per spoken turn that got a reply. Full scale is two seconds, or the longest reply if greater.
export function replyPlot(call) {
  const turns = (call.turns ?? [])
    .map((turn, index) => ({ index, seconds: turn.reply_seconds, turn }))
    .filter(({ seconds }) => Number.isFinite(seconds))
    .slice(-BARS);
  const top = Math.max(2, ...turns.map(({ seconds }) => seconds));
  const step = Math.min(18, WIDTH / Math.max(turns.length, 1));
  const y = (seconds) => HEIGHT - (seconds / top) * HEIGHT;
  const all = replySeconds(call);
  const label = all.length ? `Reply times of ${all.length} turns: ${replies(all)}` : "No replies yet";
  return svg(
    "svg",
    { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT + 2}`, role: "img", "aria-label": label },
    svg("line", { class: "rule", x1: 0, x2: WIDTH, y1: y(QUICK), y2: y(QUICK) }),
    svg("text", { class: "rule-label", x: WIDTH, y: y(QUICK) - 4 }, brief(QUICK)),
    svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT + 0.5, y2: HEIGHT + 0.5 }),
    turns.map(({ index, seconds, turn }, place) =>
      svg(
        "rect",
        {
          class: `bar-of ${seconds <= QUICK ? "quick" : seconds <= SLOW ? "fair" : "slow"}`,
          x: place * step,
          y: Math.min(y(seconds), HEIGHT - 2),
          width: Math.max(1, step - 4),
          height: Math.max(2, HEIGHT - y(seconds)),
          rx: Math.min(3, step / 4),
        },
        svg("title", {}, describe(index, seconds, turn)),
      ),
    ),
  );
}

function describe(index, seconds, turn) {
  const parts = [`Turn ${index + 1}: reply after ${brief(seconds)}`];
  for (const [name, value] of Object.entries(turn.latencies ?? {})) {
    parts.push(`Deepgram's ${name.replaceAll("_", " ")}: ${brief(value)}`);
  }
  return parts.join("\n");
}

// The recent length of one queue: at most `count` samples in milliseconds, newest last.
export function queueLine(samples, count, ceiling) {
  const top = Math.max(ceiling, ...samples);
  const x = (index) => WIDTH - (samples.length - 1 - index) * (WIDTH / (count - 1));
  const y = (ms) => 27 - (ms / top) * 26;
  const points = samples.map((ms, index) => `${x(index).toFixed(1)},${y(ms).toFixed(1)}`);
  const area = points.length
    ? `M${x(0).toFixed(1)},28 L${points.join(" L")} L${WIDTH},28 Z`
    : "M0,28";
  return svg(
    "svg",
    { class: "plot queue", viewBox: `0 0 ${WIDTH} 28`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: "area", d: area }),
    svg("polyline", { class: "trace", points: points.join(" ") }),
    svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: 27.5, y2: 27.5 }),
  );
}
