// The pages' client of the control API: the operator's token, requests, server-sent events.
//
//   import { api, stream, ApiError } from "./session.js";
//
//   const calls = await api("/calls");                          // JSON, or null for an empty answer
//   await api(`/calls/${sid}`, { method: "DELETE" });
//   await api(`/calls/${sid}/say`, { method: "POST", body: { text } });
//
//   const done = stream("/events", ({ event, data, id }) => {…}, { signal, onState });
//
// The token is in the address that the server prints, behind "#token=", or is requested when the
// server asks for one. It is kept until the tab is closed.

const KEY = "bridge-token";
const LONGEST_WAIT = 5000; // ms between two attempts to reconnect
const DEAF_AFTER = 25000; // ms without a byte, of two heartbeats, after which the connection counts as dead

takePrintedToken();
window.addEventListener("hashchange", (event) => {
  if (!takePrintedToken()) return;
  event.stopImmediatePropagation();
  location.reload();
});

// Keep the token of the printed address, and take it out of the address bar and the history.
function takePrintedToken() {
  const printed = /^#token=([\x21-\x7e]+)$/.exec(location.hash);
  if (!printed) return false;
  sessionStorage.setItem(KEY, printed[1]);
  history.replaceState(null, "", location.pathname + location.search);
  return true;
}

// A refused or failed request. `status` is the HTTP status, 0 without an answer; `message` is shown.
export class ApiError extends Error {
  constructor(status, message, body = null) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

// Send a request; `body` goes as JSON. Resolves to the JSON of the answer, null if it is empty.
// Throws ApiError; an abort is thrown unchanged.
export async function api(path, { method = "GET", body, signal } = {}) {
  const response = await ask(path, {
    method,
    signal,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const answer = await readJson(response);
  if (!response.ok) throw refusal(response.status, answer);
  return answer;
}

// Follow a stream of server-sent events; reconnect when it breaks, with growing pauses.
//
// `onEvent` gets each {event, data, id}, with `data` parsed from JSON. `onState` gets "open" and
// "waiting" (to reconnect). Resolves when `signal` is aborted or the stream no longer exists (404,
// 410); throws ApiError when the server refuses for another reason.
export async function stream(path, onEvent, { signal, onState = () => {} } = {}) {
  let wait = 250;
  while (!signal?.aborted) {
    try {
      const response = await ask(path, { headers: { Accept: "text/event-stream" }, signal });
      if (response.status === 404 || response.status === 410) return;
      if (response.status < 500 && !response.ok) {
        throw refusal(response.status, await readJson(response));
      }
      if (response.ok) {
        onState("open");
        await readEvents(response, onEvent, () => (wait = 250));
      }
    } catch (error) {
      if (signal?.aborted) return;
      // No connection, or a lost one: retry. A refusal is final.
      if (error instanceof ApiError && error.status !== 0) throw error;
    }
    if (signal?.aborted) return;
    onState("waiting");
    await pause(wait, signal);
    wait = Math.min(wait * 2, LONGEST_WAIT);
  }
}

async function ask(path, { headers = {}, ...options }) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    let response;
    try {
      response = await fetch(path, {
        ...options,
        headers: token ? { ...headers, Authorization: `Bearer ${token}` } : headers,
        cache: "no-store",
        credentials: "same-origin",
        redirect: "error",
      });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new ApiError(0, "The server cannot be reached.");
    }
    if (response.status !== 401) return response;
    // Another request may have obtained the token in the meantime.
    if (sessionStorage.getItem(KEY) === token) await signIn(token !== null, options.signal);
  }
}

function refusal(status, answer) {
  return new ApiError(status, answer?.error ?? `The server answered ${status}.`, answer);
}

async function readJson(response) {
  const text = await response.text();
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

// https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
async function readEvents(response, onEvent, onAlive) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await within(reader.read(), DEAF_AFTER);
      if (done) return;
      onAlive();
      const blocks = (rest + decoder.decode(value, { stream: true })).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const event = readEvent(block);
        if (event) onEvent(event);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function readEvent(block) {
  let event = "message";
  let id = null;
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const at = line.indexOf(":");
    const name = at < 0 ? line : line.slice(0, at);
    const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
    if (name === "event") event = value;
    else if (name === "id") id = value;
    else if (name === "data") data.push(value);
  }
  if (!data.length) return null;
  try {
    return { event, id, data: JSON.parse(data.join("\n")) };
  } catch {
    return null;
  }
}

async function within(promise, ms) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new ApiError(0, "The server stopped sending.")), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        resolve();
      },
      { once: true },
    );
  });
}

// The sign-in form. All requests that need the token share one form.
let signingIn = null;

function signIn(wasWrong, signal) {
  signingIn ??= askForToken(wasWrong).finally(() => {
    signingIn = null;
  });
  if (!signal) return signingIn;
  const aborted = new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
  return Promise.race([signingIn, aborted]);
}

function askForToken(wasWrong) {
  const dialog = document.createElement("dialog");
  dialog.className = "sign-in";
  dialog.setAttribute("aria-labelledby", "sign-in-title");
  const form = element("form", { method: "dialog" });
  const problem = element("p", { className: "notice bad", hidden: !wasWrong });
  problem.setAttribute("role", "alert");
  problem.textContent = "That token is not valid. Try again.";
  const label = element("label", { htmlFor: "sign-in-token", textContent: "Token" });
  const field = element("input", {
    id: "sign-in-token",
    className: "field",
    type: "password",
    autocomplete: "current-password",
    required: true,
    spellcheck: false,
  });
  form.append(
    element("h2", { id: "sign-in-title", textContent: "Sign in" }),
    element("p", {
      className: "muted",
      textContent:
        "Enter the server's API token: the value of BRIDGE_API_TOKEN in the server's environment, or, " +
        "where that is not set, the token in the address that the server printed when it started. " +
        "It is kept until you close this tab.",
    }),
    problem,
    label,
    field,
    element("button", { className: "button primary", type: "submit", textContent: "Sign in" }),
  );
  dialog.append(form);
  document.body.append(dialog);
  return new Promise((resolve) => {
    // Without a token there is nothing to show, so Escape does not close the form.
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const token = field.value.trim();
      if (!/^[\x21-\x7e]+$/.test(token)) {
        problem.hidden = false; // not valid in an HTTP header
        return;
      }
      sessionStorage.setItem(KEY, token);
      dialog.close();
      dialog.remove();
      resolve();
    });
    dialog.showModal();
    field.focus();
  });
}

function element(name, properties) {
  return Object.assign(document.createElement(name), properties);
}
