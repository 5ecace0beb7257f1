// The line of one call: connects Sound to the server's media socket.

import { MediaStreamWriter, newStreamSid, readMessage } from "./media-stream.js";

// A line that cannot keep up drops audio, as a phone network does: with more than four seconds
// waiting, frames are discarded. Keys, marks and `stop` are always sent.
const MOST_WAITING = 64 * 1024;

export class Line {
  // `call` is the answer of POST /softphone/call. `onOpen` is called when the socket is open,
  // `onClosed` once, when either side has closed it.
  constructor(call, sound, { onOpen, onClosed }) {
    this.sound = sound;
    this.frames = 0;
    this.over = false;
    this.streamSid = newStreamSid();
    this.writer = new MediaStreamWriter(call.call_sid, this.streamSid, call.parameters);
    this.socket = new WebSocket(sameHost(call.stream_url));
    this.socket.onopen = () => {
      this.socket.send(this.writer.connected());
      this.socket.send(this.writer.start());
      onOpen();
    };
    this.socket.onmessage = ({ data }) => {
      const message = this.over ? null : readMessage(data, this.streamSid);
      if (message) this.sound.send(message);
    };
    this.socket.onclose = ({ code, reason }) => {
      this.over = true;
      onClosed({ code, reason, opened: this.writer.sequence > 0 });
    };
  }

  get open() {
    return !this.over && this.socket.readyState === WebSocket.OPEN;
  }

  // Take a message from the engine.
  take(message) {
    if (!this.open) return;
    if (message.type === "mark") this.socket.send(this.writer.mark(message.name));
    if (message.type !== "frame") return;
    if (this.socket.bufferedAmount <= MOST_WAITING) {
      this.socket.send(this.writer.media(message.bytes, this.frames));
    }
    this.frames += 1;
  }

  press(digit) {
    if (this.open) this.socket.send(this.writer.dtmf(digit));
  }

  hangUp() {
    if (this.open) this.socket.send(this.writer.stop());
    this.over = true;
    this.socket.close(1000);
  }
}

// The socket's URL on this page's own server: same host, matching scheme.
function sameHost(address) {
  const url = new URL(address, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  url.host = location.host;
  return url;
}
