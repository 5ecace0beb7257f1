// Calls that have ended or are live in another worker: the list from the records, and one in detail.

import { Transcript, functionList } from "./conversation.js";
import { h, openDialog, setChildren } from "./dom.js";
import { replyPlot } from "./plots.js";
import { api } from "./session.js";
import {
  brief,
  clock,
  ending,
  exactMoment,
  moment,
  replies,
  replySeconds,
  reported,
  typedReplySeconds,
  who,
} from "./words.js";

const STEPS = [50, 200, 500]; // lengths of the list; the API returns no more

export class RecentCalls {
  // `isLive(sid)`: whether the page already shows that call as live; `server()` returns the server's
  // state; `showLive(sid)` shows a live call and resolves to whether the page has it; `onChange()` is
  // called after the list has changed.
  constructor(element, { isLive, server, showLive, onChange }) {
    this._element = element;
    this._onChange = onChange;
    this._isLive = isLive;
    this._server = server;
    this._showLive = showLive;
    this._step = 0;
    this._asking = null;
    this.calls = null;
    this._trouble = "";
    window.addEventListener("hashchange", () => this.openNamed());
  }

  // Fetch the list again. One request at a time; calls during a request cause one more after it.
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
      setChildren(this._element, [h("p", { class: "notice bad" }, `Could not load the list. ${error.message}`)]);
      this.calls = null;
      return;
    }
    // Another worker process may have answered; its live calls are not on this page.
    const others = answer.live.map((call) => ({
      ...call,
      live: false,
      elsewhere: true,
      started_at: new Date(Date.now() - 1000 * call.seconds).toISOString(),
    }));
    this._trouble = answer.records_error;
    this.calls = [...others, ...answer.recent].filter((call) => !this._isLive(call.call_sid));
    this.show(limit);
    this._onChange();
  }

  // The number of live calls in other worker processes.
  elsewhere() {
    if (!(this._server().workers > 1)) return 0;
    return (this.calls ?? []).filter((call) => call.elsewhere && !this._isLive(call.call_sid)).length;
  }

  show(limit) {
    const { calls } = this;
    const rows = calls.map((call) => this._row(call));
    const more = calls.length >= limit && this._step + 1 < STEPS.length;
    setChildren(this._element, [
      this._trouble && h("p", { class: "notice bad" }, `The records cannot be read: ${this._trouble}.`),
      rows.length
        ? h("ul", { class: "rows" }, rows)
        : h("p", { class: "muted empty" }, this._server().records === false
            ? "No records are kept: records.url is empty in config.toml."
            : "Ended calls are listed here."),
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

  // Open the call whose SID is in the URL's fragment, if there is one: its card while it is live on
  // this page, its record otherwise.
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
    const forget = () => history.replaceState(null, "", location.pathname);
    if (call?.live && (await this._showLive(sid))) return forget();
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
    dialog.addEventListener("close", forget);
  }

  _inFull(call) {
    const [words, kind] = ending(call, this._server().workers);
    const times = replySeconds(call);
    const facts = [
      ["Started", exactMoment(call.started_at)],
      ["Duration", call.outcome ? clock(call.seconds) : ""],
      ["Agent", call.agent],
      ["Direction", call.direction === "outbound-api" ? "Outbound" : "Inbound"],
      ["Agent ready in", call.setup_seconds == null ? "" : brief(call.setup_seconds)],
      ["Teardown", call.teardown_seconds == null ? "" : brief(call.teardown_seconds)],
      ["Reply times", replies(times)],
      ["Replies to typing", replies(typedReplySeconds(call))],
      ["Deepgram reports", reported(call)],
      ["Barge-ins", call.barge_ins],
      ["Agent reconnects", call.reconnects],
      ["Audio dropped", call.dropped_bytes ? brief(call.dropped_bytes / 8000) : ""],
      ["Answered by", (call.answered_by ?? "").replaceAll("_", " ")],
      ["Transferred to", call.transfer_to],
      ["Cost", call.cost == null ? "" : call.cost.toFixed(4)],
      ["Recording", call.recording],
      ["SID", call.call_sid],
    ].filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== 0);
    const transcript = new Transcript();
    const goesOn = call.live || call.elsewhere;
    transcript.show(
      call.transcript ?? [],
      goesOn ? "The transcript is stored when the call ends." : "Nothing was said.",
    );
    return h(
      "div",
      { class: "in-full" },
      h("p", {}, h("span", { class: `badge ${kind}` }, words), call.reason ? ` ${call.reason}` : ""),
      h("dl", { class: "facts" }, facts.map(([name, value]) => [
        h("dt", {}, name),
        h("dd", { class: name === "SID" ? "mono" : "numbers" }, String(value)),
      ]).flat()),
      times.length ? h("figure", { class: "plot-of" }, replyPlot(call)) : null,
      h("h3", {}, "Transcript"),
      transcript.element,
      call.functions?.length ? [h("h3", {}, "Functions"), functionList(call.functions)] : null,
    );
  }
}
