// Text for people: durations, dates, states, outcomes.

// A duration as a clock shows it: 0:07, 12:05, 1:02:33.
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds ?? 0));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

// A duration in words, coarsely: 48 s, 12 min, 3 h 05 min, 4 days 2 h.
export function span(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  const days = Math.floor(hours / 24);
  return `${days} ${days === 1 ? "day" : "days"} ${hours % 24} h`;
}

// A short duration to the millisecond: 640 ms, 1.24 s.
export function brief(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  return seconds < 0.9995 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(2)} s`;
}

// A point in time: the time if it is today, else the date and the time.
export function moment(iso, now = new Date()) {
  const then = new Date(iso);
  if (Number.isNaN(then.getTime())) return "";
  const time = then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  if (then.toDateString() === now.toDateString()) return time;
  return `${then.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}

export function exactMoment(iso) {
  const then = new Date(iso);
  return Number.isNaN(then.getTime()) ? "" : then.toLocaleString();
}

export function who(number) {
  return number || "unknown";
}

const STATES = {
  connecting: ["Connecting", "warn"],
  listening: ["Listening", "caller"],
  thinking: ["Thinking", "warn"],
  speaking: ["Speaking", "good"],
  reconnecting: ["Reconnecting", "bad"],
  ending: ["Ending", ""],
};

// The state of a live call: its text and the badge's kind.
export function state(call) {
  if (call.state === "listening" && call.caller_speaking) return ["Caller speaking", "caller"];
  return STATES[call.state] ?? [String(call.state), ""];
}

const OUTCOMES = {
  caller_hung_up: ["Caller hung up", "good"],
  agent_ended: ["Agent hung up", "good"],
  transferred: ["Transferred", "good"],
  handed_over: ["Handed over", ""],
  operator_hung_up: ["Operator hung up", ""],
  idle: ["No one spoke", ""],
  max_duration: ["Time limit reached", ""],
  server_shutdown: ["Server stopped", "warn"],
  phone_lost: ["Phone lost", "warn"],
  agent_unreachable: ["Agent unreachable", "bad"],
  agent_failed: ["Agent failed", "bad"],
  protocol_error: ["Protocol error", "bad"],
  internal_error: ["Internal error", "bad"],
  server_lost: ["Server lost", "bad"],
};

const STATUSES = {
  queued: "Queued",
  initiated: "Dialling",
  ringing: "Ringing",
  "in-progress": "Answered",
  completed: "Completed",
  busy: "Busy",
  failed: "Failed",
  "no-answer": "No answer",
  canceled: "Cancelled",
};

// How a call ended, or its status if it has not: the text and the badge's kind. `workers` is the
// server's number of worker processes.
export function ending(call, workers = 1) {
  if (call.outcome) return OUTCOMES[call.outcome] ?? [call.outcome, ""];
  if (call.live) return ["Live", "good"];
  if (call.elsewhere) {
    return workers > 1 ? ["Other worker", "caller"] : ["No end recorded", "warn"];
  }
  return [STATUSES[call.status] ?? "No end recorded", "warn"];
}

export function outcomeWords(outcome) {
  return (OUTCOMES[outcome] ?? [outcome])[0];
}

// The reply times of a call in seconds, those of spoken turns; typed turns are measured apart.
export function replySeconds(call) {
  return finite(call, (turn) => turn.reply_seconds);
}

export function typedReplySeconds(call) {
  return finite(call, (turn) => turn.typed_reply_seconds);
}

// Reply times in words; empty without any.
export function replies(times) {
  return times.length ? `median ${brief(median(times))}, longest ${brief(Math.max(...times))}` : "";
}

// What Deepgram reports of its own part in the replies: the median of each figure, by its name.
export function reported(call) {
  const parts = [
    ["total", (all) => all.total_latency],
    ["ttt", (all) => all.ttt_latency ?? all.ttt_text_latency],
    ["tts", (all) => all.tts_latency],
  ];
  return parts
    .map(([name, of]) => [name, median(finite(call, (turn) => of(turn.latencies ?? {})))])
    .filter(([, seconds]) => seconds !== null)
    .map(([name, seconds]) => `${name} ${brief(seconds)}`)
    .join(", ");
}

function finite(call, of) {
  return (call.turns ?? []).map(of).filter(Number.isFinite);
}

export function median(numbers) {
  if (!numbers.length) return null;
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
