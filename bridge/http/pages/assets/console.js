// The console: the state of the server, the live calls, and the recent ones.
//
// It applies the events of GET /events (documented in bridge/live/hub.py) and redraws at most once a
// frame. All data comes from the API, through session.js.

import { chooseTarget, confirmHangUp, openDialForm, tell } from "./dialling.js";
import { h, setChildren, setText } from "./dom.js";
import { LiveCall } from "./live-call.js";
import { RecentCalls } from "./recent-calls.js";
import { ApiError, api, stream } from "./session.js";
import { brief, median, outcomeWords, replySeconds, span, who } from "./words.js";

const STAY = 15000; // ms that a call's card stays after the call has ended
const OPEN_UP_TO = 3; // with more live calls than this, new cards start collapsed
const RECORDED = [400, 2500]; // ms after the end of a call at which its record is fetched
const REFRESH = 30000; // ms between refreshes of the list without events,
const REFRESH_OTHERS = 5000; // and with several workers: only records show the others' calls

const CONNECTIONS = {
  connecting: ["Connecting", "warn"],
  open: ["Live", "good pulse"],
  lost: ["No connection", "bad"],
};

const byId = (id) => document.getElementById(id);
const cards = new Map();
let server = {};
let listed = null; // the SIDs of the latest snapshot
let wanted = null; // the live call that the address names, until its card is there: {sid, resolve}
let connection = "connecting"; // then "open" or "lost"
let lostAt = null; // when the connection was lost: all that is shown is older
let refused = ""; // why the server gives no events; the page does not ask again
let drawing = false;

const recent = new RecentCalls(byId("recent"), {
  isLive: (sid) => cards.has(sid) && !cards.get(sid).over,
  server: () => server,
  showLive,
  onChange: () => draw(),
});

const events = {
  snapshot({ server: facts, call_sids: sids }) {
    server = facts;
    listed = sids;
    for (const [sid, card] of cards) if (!sids.includes(sid) && !card.over) drop(sid);
    recent.refresh();
  },
  began({ call }) {
    const known = cards.get(call.call_sid);
    if (known && !known.over) return known.replace(call);
    add(call);
    return say(`Call from ${who(call.caller)}`);
  },
  call(data) {
    change(data.call_sid, (call) => Object.assign(call, data));
  },
  audio({ calls }) {
    for (const [sid, audio] of Object.entries(calls)) {
      if (cards.has(sid)) Object.assign(cards.get(sid).call, audio);
    }
  },
  ended(data) {
    const card = cards.get(data.call_sid);
    if (card) {
      card.end(data);
      say(`Call from ${who(card.call.caller)} ended: ${outcomeWords(data.outcome)}`);
      setTimeout(() => drop(data.call_sid, card), STAY);
    }
    for (const ms of RECORDED) setTimeout(() => recent.refresh(), ms);
  },
  server(facts) {
    Object.assign(server, facts);
  },
};

for (const name of ["transcript", "turns", "functions"]) {
  events[name] = (data) =>
    change(data.call_sid, (call) => call[name].splice(data.from, Infinity, ...data.items));
}

function add(call) {
  cards.get(call.call_sid)?.element.remove();
  const going = [...cards.values()].filter((card) => !card.over);
  cards.set(call.call_sid, new LiveCall(call, { open: going.length < OPEN_UP_TO, say: sayAsAgent, transfer, hangUp }));
}

function change(sid, how) {
  const card = cards.get(sid);
  if (!card) return;
  how(card.call);
  card.show();
}

function drop(sid, card = cards.get(sid)) {
  if (cards.get(sid) !== card) return;
  cards.delete(sid);
  draw();
}

// Show the card of a live call. Resolves to whether the call is on this page, which the first
// snapshot tells.
function showLive(sid) {
  return new Promise((resolve) => {
    wanted = { sid, resolve };
    lookForWanted();
  });
}

function lookForWanted() {
  if (!wanted || !listed) return;
  const card = cards.get(wanted.sid);
  if (!card && listed.includes(wanted.sid)) return; // its `began` comes next
  wanted.resolve(Boolean(card));
  wanted = null;
  if (!card) return;
  draw();
  requestAnimationFrame(() => card.reveal());
}

async function hangUp(card) {
  if (await confirmHangUp(card.call)) await act("hang up", card, "", { method: "DELETE" });
}

async function transfer(card) {
  const to = await chooseTarget(card.call);
  if (to) await act("transfer", card, "/transfer", { method: "POST", body: { to } });
}

function sayAsAgent(card, text) {
  return act("say that", card, "/say-as-agent", { method: "POST", body: { text } });
}

// Ask the API to act on a call. Resolves to whether it does; the page says why not.
async function act(what, card, path, request) {
  try {
    await api(`/calls/${card.call.call_sid}${path}`, request);
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    alertOnce(`Could not ${what}. ${error.message}`);
    return false;
  }
}

function dial() {
  if (server.cannot_dial) return tell("Dialling is not set up", `${server.cannot_dial}.`);
  return openDialForm(server.agents ?? {}, ({ call_sid: sid, status }) => {
    say(`Call ${sid} is ${status}`);
    recent.refresh();
    for (const ms of RECORDED) setTimeout(() => recent.refresh(), ms);
  });
}

// ---- drawing ------------------------------------------------------------------------------------

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const feed = byId("feed");
    const [words, kind] = CONNECTIONS[connection];
    setText(feed, words);
    feed.className = `badge end ${kind}`;
    byId("main").classList.toggle("stale", lostAt !== null);
    drawAlerts();
    drawTiles();
    const all = [...cards.values()];
    const others = recent.elsewhere();
    setText(elsewhere, inOtherWorkers(others));
    const shown = all.length || others ? all.map((card) => card.element) : [noCalls()];
    setChildren(byId("live"), others ? [...shown, elsewhere] : shown);
  });
}

function drawTiles() {
  const going = [...cards.values()].filter((card) => !card.over).map((card) => card.call);
  const times = going.flatMap(replySeconds);
  const { live = 0, max_calls: most = 0, workers = 1, stalls = 0 } = server;
  const up = server.started_at ? (Date.now() - Date.parse(server.started_at)) / 1000 : 0;
  const taking = lostAt ? "Unknown" : server.draining ? "Draining" : live >= most ? "Full" : "Taking calls";
  const tiles = [
    ["Live calls", String(live), `of ${most}${workers > 1 ? `, in this one of ${workers} workers` : ""}`, meter(live, most)],
    ["Server", taking, lostAt ? `no connection since ${lostAt}` : `up ${span(up)}`],
    ["Reply time", times.length ? brief(median(times)) : "–", times.length ? "median of the live calls" : "no replies in live calls"],
    ["Loop stalls", String(stalls), stalls ? `${brief(server.stall_seconds)} in total` : "event loop never blocked"],
    ["Records", server.records === false ? "Off" : server.database_trouble ? "Failing" : "Stored",
      server.records === false ? "records.url is empty" : server.records_waiting ? `${server.records_waiting} waiting` : "all written"],
  ];
  byId("tiles").replaceChildren(
    ...tiles.map(([name, value, note, extra]) =>
      h("div", { class: "card tile" }, h("dt", {}, name), h("dd", {}, h("b", { class: "numbers" }, value), h("span", { class: "small muted" }, note), extra ?? null)),
    ),
  );
}

function meter(value, max) {
  return h("meter", { min: 0, max: Math.max(1, max), high: max * 0.9, value, "aria-label": "Live calls" });
}

let passing = "";

function alertOnce(words) {
  passing = words;
  setTimeout(() => {
    if (passing === words) passing = "";
    draw();
  }, 10000);
  draw();
}

function drawAlerts() {
  const alerts = [];
  if (connection === "lost") alerts.push(["bad", lossWords()]);
  if (passing) alerts.push(["bad", passing]);
  if (server.draining) alerts.push(["", "The server is stopping. Live calls may finish; new callers are asked to call again."]);
  if (server.database_trouble) alerts.push(["bad", `The database is unavailable: ${server.database_trouble}. Records are kept on disk until it is back; calls are not affected.`]);
  if (server.records_lost) alerts.push(["bad", `${server.records_lost} records were lost. The log lists their calls.`]);
  const key = JSON.stringify(alerts);
  const box = byId("alerts");
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren(...alerts.map(([kind, words]) => h("p", { class: `notice ${kind}` }, words)));
}

function lossWords() {
  const next = refused ? `${refused} Reload the page to try again.` : "Trying to connect again.";
  if (!lostAt) return `There is no connection to the server. ${next}`;
  return `The connection to the server was lost at ${lostAt}. This page shows the state before that. ${next}`;
}

// Shown until the server has had its first call.
const steps = h(
  "div",
  { class: "card no-calls" },
  h("p", { class: "lead" }, "No live calls. Three ways to make one:"),
  h(
    "ol",
    { class: "ways" },
    way("Talk to the agent here", ["Open the ", h("a", { href: "/softphone" }, "softphone"), " and press Call. It needs only this browser and a microphone; you can also type."]),
    way("Call from a terminal", ["A simulated phone calls as Twilio would, with the server’s ", h("code", {}, "TWILIO_AUTH_TOKEN"), " in its environment:", h("code", { class: "command" }, `bridge phone --url ${location.origin}`)]),
    way("Connect a real number", ["With Twilio’s credentials in the environment and this server reachable from the internet (", h("code", {}, "bridge serve --tunnel"), " gives it a public address):", h("code", { class: "command" }, "bridge number +15551234567")]),
  ),
);
const elsewhere = h("p", { class: "card muted empty" });
const quiet = h("p", { class: "card muted empty" }, "No live calls.");

function way(title, rest) {
  return h("li", {}, h("h3", {}, title), h("p", {}, rest));
}

function inOtherWorkers(count) {
  const [calls, they] = count === 1 ? ["One more call is", "it has"] : [`${count} more calls are`, "they have"];
  return `${calls} live in another worker process and listed below; transcripts appear when ${they} ended.`;
}

function noCalls() {
  return recent.calls?.length ? quiet : steps;
}

function say(words) {
  setText(byId("said"), words);
}

// ---- running ------------------------------------------------------------------------------------

byId("dial").addEventListener("click", dial);
setInterval(() => {
  if (document.hidden || lostAt) return;
  for (const card of cards.values()) {
    card.tick();
    card.sample();
  }
}, 250);
let refreshed = 0;
setInterval(() => {
  const pause = server.workers > 1 ? REFRESH_OTHERS : REFRESH;
  if (document.hidden || connection !== "open" || performance.now() - refreshed < pause) return;
  refreshed = performance.now();
  recent.refresh();
}, REFRESH_OTHERS);

recent.openNamed();
try {
  await stream("/events", ({ event, data }) => {
    events[event]?.(data);
    lookForWanted();
    draw();
  }, {
    onState: (state) => (state === "open" ? connect() : disconnect()),
  });
} catch (error) {
  if (!(error instanceof ApiError)) throw error;
  refused = error.message;
}
disconnect();

function connect() {
  connection = "open";
  lostAt = null;
  draw();
}

function disconnect() {
  if (connection === "open") lostAt = new Date().toLocaleTimeString();
  connection = "lost";
  draw();
}
