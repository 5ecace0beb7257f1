// The calls that are over, or on somewhere else: a list out of the records, and one in full.

import { Transcript, functionList } from "./conversation.js";
import { h, openDialog, setChildren } from "./dom.js";
import { replyTimes } from "./plots.js";
import { api } from "./session.js";
import { brief, clock, ending, exactMoment, latencies, median, moment, who } from "./words.js";

const STEPS = [50, 200, 500]; // how many are listed; the API gives no more

export class RecentCalls {
  // `isLive` says of a SID whether it is on the page already; `server` gives the server's facts;
  // `onChange` is told when the list has.
  constructor(element, { isLive, server, onChange }) {
    this._element = element;
    this._onChange = onChange;
    this._isLive = isLive;
    this._server = server;
    this._step = 0;
    this._asking = null;
    this.calls = null;
    window.addEventListener("hashchange", () => this.openNamed());
  }

  // Ask for the list anew. One request at a time; what comes meanwhile is asked for once more.
  refresh() {
    if (this._asking) {
      this._again = true;
      return this._asking;
    }
    this._asking = this._load().finally(() => {
      this._asking = null;
      if (this._again) {
        this._again = false;
        this.refresh();
      }
    });
    return this._asking;
  }

  async _load() {
    const limit = STEPS[this._step];
    let answer;
    try {
      answer = await api(`/calls?limit=${limit}`);
    } catch (error) {
      setChildren(this._element, [h("p", { class: "notice bad" }, `The list could not be read. ${error.message}`)]);
      this.calls = null;
      return;
    }
    // Another worker process may have answered: what is live there is not on this page.
    const others = answer.live.map((call) => ({
      ...call,
      live: false,
      elsewhere: true,
      started_at: new Date(Date.now() - 1000 * call.seconds).toISOString(),
    }));
    this.calls = [...others, ...answer.recent].filter((call) => !this._isLive(call.call_sid));
    this.show(limit);
    this._onChange();
  }

  // How many calls are on in other worker processes.
  elsewhere() {
    if (!(this._server().workers > 1)) return 0;
    return (this.calls ?? []).filter((call) => call.elsewhere && !this._isLive(call.call_sid)).length;
  }

  show(limit) {
    const { calls } = this;
    const rows = calls.map((call) => this._row(call));
    const more = calls.length >= limit && this._step + 1 < STEPS.length;
    setChildren(this._element, [
      rows.length
        ? h("ul", { class: "rows" }, rows)
        : h("p", { class: "muted empty" }, this._server().records === false
            ? "No records are kept: records.url is empty in config.toml."
            : "Calls that are over are listed here."),
      more &&
        h("button", { class: "button quiet more", type: "button", onclick: () => this._more() }, "Show more"),
    ].filter(Boolean));
  }

  _more() {
    this._step += 1;
    this.refresh();
  }

  _row(call) {
    const [words, kind] = ending(call, this._server().workers);
    const button = h(
      "button",
      { class: "row", type: "button", onclick: () => (location.hash = call.call_sid) },
      h("span", { class: "when muted numbers" }, moment(call.started_at)),
      h(
        "span",
        { class: "people numbers" },
        h("strong", {}, who(call.caller)),
        h("span", { class: "muted to" }, call.called ? `to ${who(call.called)}` : ""),
      ),
      h("span", { class: "agent muted" }, call.agent ?? ""),
      h("span", { class: "length numbers" }, call.outcome ? clock(call.seconds) : ""),
      h("span", { class: `badge ${kind}` }, words),
    );
    button.dataset.sid = call.call_sid;
    return h("li", {}, button);
  }

  // Open the call that the address names, if it names one.
  async openNamed() {
    const sid = decodeURIComponent(location.hash.slice(1));
    if (!/^[A-Za-z0-9_-]{1,64}$/.test(sid)) return;
    let call = null;
    let problem = "";
    try {
      call = await api(`/calls/${sid}`);
    } catch (error) {
      problem = error.message;
    }
    const dialog = openDialog(
      call ? `${who(call.caller)}${call.called ? ` to ${who(call.called)}` : ""}` : "This call cannot be shown",
      "sheet",
      call ? this._inFull(call) : h("p", { class: "notice bad" }, problem),
      h(
        "form",
        { method: "dialog", class: "foot" },
        h("button", { class: "button", type: "submit" }, "Close"),
      ),
    );
    dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname));
  }

  _inFull(call) {
    const [words, kind] = ending(call, this._server().workers);
    const times = latencies(call);
    const facts = [
      ["Began", exactMoment(call.started_at)],
      ["Length", call.outcome ? clock(call.seconds) : ""],
      ["Agent", call.agent],
      ["Direction", call.direction === "outbound-api" ? "dialled from here" : "came in"],
      ["Ready after", call.setup_seconds == null ? "" : brief(call.setup_seconds)],
      ["Closed within", call.teardown_seconds == null ? "" : brief(call.teardown_seconds)],
      ["Reply times", times.length ? `median ${brief(median(times))}, longest ${brief(Math.max(...times))}` : ""],
      ["Barge-ins", call.barge_ins],
      ["Agent lost", call.reconnects ? `${call.reconnects}×` : ""],
      ["Audio dropped", call.dropped_bytes ? brief(call.dropped_bytes / 8000) : ""],
      ["Answered by", (call.answered_by ?? "").replaceAll("_", " ")],
      ["Transferred to", call.transfer_to],
      ["Cost", call.cost == null ? "" : call.cost.toFixed(4)],
      ["Recording", call.recording],
      ["SID", call.call_sid],
    ].filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== 0);
    const transcript = new Transcript();
    transcript.show(call.transcript ?? []);
    return h(
      "div",
      { class: "in-full" },
      h("p", {}, h("span", { class: `badge ${kind}` }, words), call.reason ? ` ${call.reason}` : ""),
      h("dl", { class: "facts" }, facts.map(([name, value]) => [
        h("dt", {}, name),
        h("dd", { class: name === "SID" ? "mono" : "numbers" }, String(value)),
      ]).flat()),
      times.length ? h("figure", { class: "plot-of" }, replyTimes(call)) : null,
      h("h3", {}, "Transcript"),
      transcript.element,
      call.functions?.length ? [h("h3", {}, "Functions"), functionList(call.functions)] : null,
    );
  }
}
