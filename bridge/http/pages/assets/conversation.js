// A conversation as it reads: who said what, what of it was heard, and which functions ran.

import { h, setChildren } from "./dom.js";
import { brief, clock } from "./words.js";

const SPEAKERS = { caller: "Caller", agent: "Agent", keypad: "Keys" };

const RESULTS = {
  "": ["runs", "warn"],
  ok: ["done", "good"],
  error: ["failed", "bad"],
  timeout: ["too slow", "bad"],
  cancelled: ["cancelled", ""],
};

// A list that is drawn anew where its items have changed, and stays at its end if it was there.
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

  // Stay where the conversation is, unless somebody has gone back to read.
  _follow() {
    if (this._atEnd) this.element.scrollTop = this.element.scrollHeight;
  }

  show(lines) {
    const list = this.element;
    const before = this._drawn;
    this._drawn = lines.map((line, index) => {
      const goesOn = index > 0 && speaker(lines[index - 1]) === speaker(line);
      const key = JSON.stringify([line, goesOn]);
      return before[index]?.key === key ? before[index] : { key, element: said(line, goesOn) };
    });
    const empty = h("li", { class: "muted nothing" }, "Nothing has been said yet.");
    setChildren(list, this._drawn.length ? this._drawn.map(({ element }) => element) : [empty]);
    this._follow();
  }
}

// The records leave out what is usual.
function speaker(line) {
  return line.role ?? "caller";
}

// A line, under the name of its speaker unless that speaker `goesOn`.
function said(line, goesOn) {
  const role = speaker(line);
  const words = typeof line.words === "string" && line.words !== "" ? line.words : null;
  return h(
    "li",
    { class: `line ${SPEAKERS[role] ? role : "caller"} ${line.heard || "pending"} ${goesOn ? "goes-on" : ""}` },
    h(
      "span",
      { class: goesOn ? "unseen" : "speaker" },
      SPEAKERS[role] ?? String(role),
      h("span", { class: "at numbers" }, clock(line.at)),
    ),
    h(
      "span",
      { class: "words" },
      words ?? h("span", { class: "muted" }, "(words are not kept)"),
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

// The functions the agent called.
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
