// Resampling between the phone's 8 kHz and the audio context's rate. Does no I/O.
//
// The context keeps its native rate: Firefox connects no microphone to a context of another rate
// than the device's, and forcing a rate on the context resamples all of its output. So we resample,
// by a windowed sinc whose table holds PHASES positions between two samples.

export const PHONE_RATE = 8000;

const PHASES = 256;
const LOBES = 16; // zero crossings on each side: the transition is about 500 Hz wide
const CUTOFF = 0.92; // of half the phone's rate

// The kernel for input at `rate`, for content below half of PHONE_RATE: `taps` values for each phase,
// for the inputs from -half + 1 to half around the position.
function kernel(rate) {
  const cutoff = (CUTOFF * Math.min(rate, PHONE_RATE)) / rate; // of half the input's rate
  const half = Math.ceil(LOBES / cutoff);
  const taps = 2 * half;
  const table = new Float32Array((PHASES + 1) * taps);
  for (let phase = 0; phase <= PHASES; phase++) {
    let sum = 0;
    const at = phase * taps;
    for (let tap = 0; tap < taps; tap++) {
      const distance = tap - half + 1 - phase / PHASES;
      const x = Math.PI * distance * cutoff;
      const sinc = x === 0 ? 1 : Math.sin(x) / x;
      const w = distance / half;
      // Blackman's window.
      const window =
        Math.abs(w) >= 1 ? 0 : 0.42 + 0.5 * Math.cos(Math.PI * w) + 0.08 * Math.cos(2 * Math.PI * w);
      sum += table[at + tap] = sinc * window;
    }
    for (let tap = 0; tap < taps; tap++) table[at + tap] /= sum; // a constant stays what it is
  }
  return { half, taps, table };
}

// From the context's rate to the phone's: push input, get the output it completes.
export class Decimator {
  constructor(rate) {
    this.step = rate / PHONE_RATE;
    this.kernel = kernel(rate);
    // The past samples that the kernel needs, and room for new ones.
    this.samples = new Float32Array(this.kernel.taps + 4096);
    this.length = this.kernel.half - 1;
    this.position = this.kernel.half - 1;
  }

  // Calls `each` with every sample of the phone's rate that `input` completes.
  push(input, each) {
    const { half, taps, table } = this.kernel;
    if (this.length + input.length > this.samples.length) {
      const larger = new Float32Array(this.length + input.length);
      larger.set(this.samples.subarray(0, this.length));
      this.samples = larger;
    }
    this.samples.set(input, this.length);
    this.length += input.length;
    while (Math.floor(this.position) + half < this.length) {
      const base = Math.floor(this.position);
      const at = Math.round((this.position - base) * PHASES) * taps;
      const first = base - half + 1;
      let sum = 0;
      for (let tap = 0; tap < taps; tap++) sum += table[at + tap] * this.samples[first + tap];
      each(sum);
      this.position += this.step;
    }
    const past = Math.max(0, Math.floor(this.position) - half + 1);
    this.samples.copyWithin(0, past, this.length);
    this.length -= past;
    this.position -= past;
  }
}

// From the phone's rate to the context's: ask for the value at a position between samples.
export class Interpolator {
  constructor() {
    this.kernel = kernel(PHONE_RATE);
    this.half = this.kernel.half; // how many samples on each side have a say
  }

  // The value `fraction` (0 to 1) behind sample `base`. `sampleAt` gives the sample of an index, 0
  // where there is none.
  value(base, fraction, sampleAt) {
    const { half, taps, table } = this.kernel;
    const at = Math.round(fraction * PHASES) * taps;
    let sum = 0;
    for (let tap = 0; tap < taps; tap++) sum += table[at + tap] * sampleAt(base - half + 1 + tap);
    return sum;
  }
}
