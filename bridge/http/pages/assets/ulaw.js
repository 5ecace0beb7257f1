// µ-law (ITU-T G.711) by tables, identical to Python's audioop for every input.

const BIAS = 33;
const CLIP = 8159; // 14 bits of magnitude, less what the bias adds

// Encodes one sample of 14 bits, its sign included.
function encodeFourteen(sample) {
  const mask = sample < 0 ? 0x7f : 0xff;
  const magnitude = Math.min(sample < 0 ? -sample : sample, CLIP) + BIAS;
  const segment = 26 - Math.clz32(magnitude); // the first, 0, ends at 63
  if (segment > 7) return 0x7f ^ mask; // the loudest, whatever is left of it
  return ((segment << 4) | ((magnitude >> (segment + 1)) & 15)) ^ mask;
}

// µ-law of every 16-bit sample, by the sample's two's complement.
export const ENCODED = Uint8Array.from({ length: 65536 }, (_, index) =>
  encodeFourteen((index < 32768 ? index : index - 65536) >> 2),
);

// The 16-bit sample of every µ-law byte.
export const DECODED = Int16Array.from({ length: 256 }, (_, index) => {
  const byte = ~index & 0xff;
  const magnitude = ((((byte & 15) << 1) + BIAS) << ((byte >> 4) & 7)) - BIAS;
  return (byte & 0x80 ? -magnitude : magnitude) * 4;
});

// The byte of silence.
export const SILENCE = ENCODED[0];

// The µ-law byte of a sample from -1 to 1; beyond, it is clipped.
export function encodeSample(sample) {
  const scaled = Math.round(sample * 32768);
  const clipped = scaled > 32767 ? 32767 : scaled < -32768 ? -32768 : scaled;
  return ENCODED[clipped & 0xffff];
}
