// The transcript of a call and its function calls, as elements.

import { h, setChildren } from "./dom.js";
import { brief, clock } from "./words.js";

const SPEAKERS = { caller: "Caller", agent: "Agent", keypad: "Keys" };

const RESULTS = {
  "": ["running", "warn"],
  ok: ["done", "good"],
  error: ["failed", "bad"],
  timeout: ["timed out", "bad"],
  cancelled: ["cancelled", ""],
};

// A list that redraws only the lines that changed, and keeps following the newest one.
export class Transcript {
  constructor() {
    this.element = h("ol", { class: "transcript", tabindex: "0", "aria-label": "Transcript" });
    this._drawn = [];
    this._atEnd = true;
    this.element.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.element;
      this._atEnd = scrollHeight - scrollTop - clientHeight < 40;
    });
    new ResizeObserver(() => this._follow()).observe(this.element);
  }

  // Scroll to the newest line, unless the reader has scrolled back.
  _follow() {
    if (this._atEnd) this.element.scrollTop = this.element.scrollHeight;
  }

  // `empty` is shown while there are no lines.
  show(lines, empty = "Nothing has been said yet.") {
    const list = this.element;
    const before = this._drawn;
    this._drawn = lines.map((line, index) => {
      const goesOn = index > 0 && heading(lines[index - 1]) === heading(line);
      const key = JSON.stringify([line, goesOn]);
      return before[index]?.key === key ? before[index] : { key, element: said(line, goesOn) };
    });
    const nothing = h("li", { class: "muted nothing" }, empty);
    setChildren(list, this._drawn.length ? this._drawn.map(({ element }) => element) : [nothing]);
    this._follow();
  }
}

// Records omit default values; "caller" is the default.
function speaker(line) {
  return line.role ?? "caller";
}

// The speaker, and the languages of the caller's words where the agent tells them.
function heading(line) {
  return [SPEAKERS[speaker(line)] ?? String(speaker(line)), ...(line.languages ?? [])].join(" · ");
}

// One line. Its heading is shown unless the line before has the same one (`goesOn`).
function said(line, goesOn) {
  const role = speaker(line);
  const words = typeof line.words === "string" && line.words !== "" ? line.words : null;
  return h(
    "li",
    { class: `line ${SPEAKERS[role] ? role : "caller"} ${line.heard || "pending"} ${goesOn ? "goes-on" : ""}` },
    h(
      "span",
      { class: goesOn ? "unseen" : "speaker" },
      heading(line),
      h("span", { class: "at numbers" }, clock(line.at)),
    ),
    h(
      "span",
      { class: "words" },
      words ?? h("span", { class: "muted" }, "(transcript not stored)"),
      note(line),
    ),
  );
}

function note(line) {
  if (line.role !== "agent") return null;
  if (line.heard === "cut") {
    const after = line.heard_seconds;
    return h("span", { class: "note" }, after ? `cut off after ${brief(after)}` : "cut off");
  }
  return line.heard === "unheard" ? h("span", { class: "note" }, "not heard") : null;
}

// The list of functions that the agent called.
export function functionList(functions) {
  return h(
    "ul",
    { class: "functions" },
    functions.map(({ at, name, seconds, result }) => {
      const [words, kind] = RESULTS[result ?? ""] ?? [String(result), ""];
      return h(
        "li",
        {},
        h("span", { class: "mono name" }, `${name}()`),
        h("span", { class: "muted numbers small" }, result ? brief(seconds ?? 0) : clock(at)),
        h("span", { class: `badge ${kind}` }, words),
      );
    }),
  );
}
