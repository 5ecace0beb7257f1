// Twilio Media Streams messages from the phone's side. Does no I/O.
//
// https://www.twilio.com/docs/voice/media-streams/websocket-messages

const FRAME_MS = 20;
const NO_ACCOUNT = `AC${"0".repeat(32)}`;

// Writes the messages of one call in sending order: numbers are strings, `connected` and `start` come
// first, sequence numbers begin with `start`, chunks count media.
export class MediaStreamWriter {
  constructor(callSid, streamSid, parameters) {
    this.callSid = callSid;
    this.streamSid = streamSid;
    this.parameters = parameters;
    this.sequence = 0;
    this.chunk = 0;
  }

  connected() {
    return JSON.stringify({ event: "connected", protocol: "Call", version: "1.0.0" });
  }

  start() {
    return this.#write("start", {
      accountSid: NO_ACCOUNT,
      streamSid: this.streamSid,
      callSid: this.callSid,
      tracks: ["inbound"],
      mediaFormat: { encoding: "audio/x-mulaw", sampleRate: 8000, channels: 1 },
      customParameters: this.parameters,
    });
  }

  // 20 ms of µ-law; `frame` counts from the start of the stream, dropped frames included.
  media(bytes, frame) {
    this.chunk += 1;
    return this.#write("media", {
      track: "inbound",
      chunk: String(this.chunk),
      timestamp: String(frame * FRAME_MS),
      payload: toBase64(bytes),
    });
  }

  dtmf(digit) {
    return this.#write("dtmf", { track: "inbound_track", digit });
  }

  mark(name) {
    return this.#write("mark", { name });
  }

  stop() {
    return this.#write("stop", { accountSid: NO_ACCOUNT, callSid: this.callSid });
  }

  #write(event, body) {
    this.sequence += 1;
    const sequenceNumber = String(this.sequence);
    return JSON.stringify({ event, sequenceNumber, [event]: body, streamSid: this.streamSid });
  }
}

// Parse a message of the server: {type: "audio", bytes}, {type: "mark", name} or {type: "clear"}; null for
// other messages and other streams.
export function readMessage(text, streamSid) {
  let message;
  try {
    message = JSON.parse(text);
  } catch {
    return null;
  }
  if (message?.streamSid !== streamSid) return null;
  if (message.event === "clear") return { type: "clear" };
  if (message.event === "mark" && typeof message.mark?.name === "string") {
    return { type: "mark", name: message.mark.name };
  }
  if (message.event === "media" && typeof message.media?.payload === "string") {
    const bytes = fromBase64(message.media.payload);
    return bytes && { type: "audio", bytes };
  }
  return null;
}

// A stream SID as Twilio's are: two letters and 32 hexadecimal digits.
export function newStreamSid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `MZ${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

function toBase64(bytes) {
  return btoa(String.fromCharCode(...bytes));
}

function fromBase64(text) {
  try {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  } catch {
    return null;
  }
}
