// Watches a page from outside its own code: what its socket carries and what it sounds like. Put
// into the page before any script of its own.
//
// probe.messages  [ms, "in" or "out", event, name or digit], media of the caller's counted only
// probe.loudness  [ms, peak] every 10 ms, of the last 6 ms before the loudspeaker
window.probe = { messages: [], loudness: [], frames: 0 };

const Socket = window.WebSocket;
window.WebSocket = class extends Socket {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", ({ data }) => note("in", JSON.parse(data)));
  }
  send(text) {
    const message = JSON.parse(text);
    if (message.event === "media") probe.frames += 1;
    else note("out", message);
    super.send(text);
  }
};

function note(way, message) {
  const what = message.mark?.name ?? message.dtmf?.digit ?? null;
  probe.messages.push([performance.now(), way, message.event, what]);
}

const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (to, ...rest) {
  if (to instanceof AudioDestinationNode) {
    const analyser = this.context.createAnalyser();
    analyser.fftSize = 256;
    connect.call(this, analyser);
    const samples = new Float32Array(analyser.fftSize);
    setInterval(() => {
      if (this.context.state !== "running") return;
      analyser.getFloatTimeDomainData(samples);
      probe.loudness.push([performance.now(), Math.max(...samples.map(Math.abs))]);
    }, 10);
  }
  return connect.call(this, to, ...rest);
};
