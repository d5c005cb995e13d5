// V's decoder, M and C in plain JavaScript, and the binary that they are read from.
//
// Function by function as in models/vae.py, models/rnn.py and models/controller.py, and with the names of those, so
// that the two can be read side by side. All sizes come from the binary. Weights are float32 arrays made of
// half-precision numbers; sums are added up in double precision.

"use strict";

const MAGIC = "WMDREAM\n";
const VERSION = 1;
const PREAMBLE = 20; // bytes: the magic, then as little-endian uint32 the version, the length of the header, the CRC-32

/** Why a binary can't be used: `reason` is "missing", "foreign", "version" or "damaged". */
class WeightsError extends Error {
  constructor(reason, detail) {
    super(`${reason}: ${detail}`);
    this.reason = reason;
  }
}

/**
 * What tools/export_dream.py wrote: `sizes` (latents, actions, hidden_size, mixtures) and `arrays` by name, each a
 * Float32Array with a `shape`. Throws WeightsError.
 */
function read_weights(buffer) {
  const bytes = new Uint8Array(buffer);
  const magic = String.fromCharCode(...bytes.subarray(0, MAGIC.length));
  if (magic !== MAGIC) throw new WeightsError("foreign", "it does not begin as weights do");
  if (bytes.length < PREAMBLE) throw new WeightsError("damaged", "it is cut off");
  const view = new DataView(buffer);
  if (view.getUint32(8, true) !== VERSION) throw new WeightsError("version", `it has version ${view.getUint32(8, true)}`);
  // The sum covers all that follows, so a file that passes is what was exported, to the last bit.
  if (view.getUint32(16, true) !== crc32(bytes.subarray(PREAMBLE))) throw new WeightsError("damaged", "its sum is wrong");
  let at = PREAMBLE + view.getUint32(12, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(PREAMBLE, at)));
  const arrays = {};
  for (const [name, shape] of header.arrays) {
    const array = new Float32Array(shape.reduce((product, size) => product * size, 1));
    for (let k = 0; k < array.length; k++, at += 2) array[k] = float16(view.getUint16(at, true));
    arrays[name] = Object.assign(array, { shape });
  }
  return { sizes: header.sizes, arrays };
}

/** The number that 16 bits of half precision stand for (IEEE 754 binary16). */
function float16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** CRC-32 as in zlib. */
function crc32(bytes) {
  const table = new Uint32Array(256);
  for (let n = 0; n < 256; n++) {
    let c = n;
    for (let bit = 0; bit < 8; bit++) c = c & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
    table[n] = c;
  }
  let crc = 0xffffffff;
  for (let k = 0; k < bytes.length; k++) crc = (crc >>> 8) ^ table[(crc ^ bytes[k]) & 0xff];
  return (crc ^ 0xffffffff) >>> 0;
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** bias + x · kernel: x (rows), kernel (rows, columns), bias (columns). */
function dense(x, kernel, bias) {
  const out = Float32Array.from(bias);
  const columns = out.length;
  let row = 0;
  // Four rows at a time, so that `out` is read and written a quarter as often.
  for (; row + 4 <= x.length; row += 4) {
    const a = x[row], b = x[row + 1], c = x[row + 2], d = x[row + 3];
    const i = row * columns, j = i + columns, k = j + columns, l = k + columns;
    for (let n = 0; n < columns; n++) {
      out[n] += a * kernel[i + n] + b * kernel[j + n] + c * kernel[k + n] + d * kernel[l + n];
    }
  }
  for (; row < x.length; row++) {
    for (let n = 0; n < columns; n++) out[n] += x[row] * kernel[row * columns + n];
  }
  return out;
}

function relu(x) {
  for (let k = 0; k < x.length; k++) if (x[k] < 0) x[k] = 0;
  return x;
}

/**
 * Keras's Conv2DTranspose with stride 2: x (size, size, channels) to ((size − 1) · 2 + k, the same, filters).
 *
 * `kernel` is (channels, k, k, filters): what each channel of a pixel stamps on the output. A row of the stamp lies in
 * one piece in `kernel` and in the output. After relu about half of `x` is zero: those stamps are left out, and the others
 * are put on four at a time.
 */
function conv2d_transpose(x, size, kernel, bias) {
  const [channels, k, , filters] = kernel.shape;
  const out_size = (size - 1) * 2 + k;
  const row = k * filters, stamp = k * row;
  const out = new Float32Array(out_size * out_size * filters);
  for (let n = 0; n < out.length; n += filters) out.set(bias, n);
  const values = new Float32Array(channels + 3);
  const stamps = new Int32Array(channels + 3);
  for (let y = 0; y < size; y++) {
    for (let x0 = 0; x0 < size; x0++) {
      const pixel = (y * size + x0) * channels;
      let count = 0;
      for (let c = 0; c < channels; c++) {
        if (x[pixel + c] !== 0) {
          values[count] = x[pixel + c];
          stamps[count++] = c * stamp;
        }
      }
      for (; count % 4; count++) values[count] = stamps[count] = 0;
      for (let n = 0; n < count; n += 4) {
        const a = values[n], b = values[n + 1], c = values[n + 2], d = values[n + 3];
        for (let ky = 0; ky < k; ky++) {
          const to = ((2 * y + ky) * out_size + 2 * x0) * filters, from = ky * row;
          const p = stamps[n] + from, q = stamps[n + 1] + from, r = stamps[n + 2] + from, s = stamps[n + 3] + from;
          for (let f = 0; f < row; f++) {
            out[to + f] += a * kernel[p + f] + b * kernel[q + f] + c * kernel[r + f] + d * kernel[s + f];
          }
        }
      }
    }
  }
  return out;
}

/** V, the vision: its decoder, which turns a z into a picture. */
class VAE {
  constructor({ arrays }) {
    this.arrays = arrays;
    this.image_size = ["vae.deconv_64", "vae.deconv_32", "vae.deconv_3"].reduce(
      (size, name) => (size - 1) * 2 + arrays[`${name}.kernel`].shape[1],
      arrays["vae.deconv_128.kernel"].shape[1],
    );
  }

  /** The picture that V sees in a z: numbers from 0 to 1, (image_size, image_size, 3). */
  decode(z) {
    const layer = (name) => [this.arrays[`${name}.kernel`], this.arrays[`${name}.bias`]];
    // Nothing lies between the dense layer and the first deconvolution, whose input is one pixel: they are one matrix.
    const [kernel, bias] = layer("vae.deconv_128");
    let x = relu(dense(z, kernel, bias));
    let size = kernel.shape[1];
    for (const name of ["vae.deconv_64", "vae.deconv_32", "vae.deconv_3"]) {
      const [kernel, bias] = layer(name);
      x = conv2d_transpose(x, size, kernel, bias);
      if (name !== "vae.deconv_3") relu(x);
      size = (size - 1) * 2 + kernel.shape[1];
    }
    return x.map(sigmoid);
  }
}

/** M, the memory: an LSTM that predicts the next z as a mixture of Gaussians, with the reward and the end. */
class MDNRNN {
  constructor({ sizes, arrays }) {
    this.arrays = arrays;
    this.latents = sizes.latents;
    this.hidden_size = sizes.hidden_size;
    this.mixtures = sizes.mixtures;
  }

  /** The state before the first frame: h and c, zeros. */
  initial_state() {
    return [new Float32Array(this.hidden_size), new Float32Array(this.hidden_size)];
  }

  /** One frame: from z, the action and the state before to what M expects, and the state after. */
  step(z, action, state) {
    state = this.update_state(z, action, state);
    return [this.predict_next(state[0]), state];
  }

  /** The LSTM alone. */
  update_state(z, action, [h, c]) {
    const gates = dense([...z, ...action, ...h], this.arrays["rnn.lstm.kernel"], this.arrays["rnn.lstm.bias"]);
    const n = this.hidden_size;
    const next_h = new Float32Array(n), next_c = new Float32Array(n);
    for (let k = 0; k < n; k++) {
      const i = gates[k], f = gates[n + k], g = gates[2 * n + k], o = gates[3 * n + k];
      next_c[k] = sigmoid(f) * c[k] + sigmoid(i) * Math.tanh(g);
      next_h[k] = sigmoid(o) * Math.tanh(next_c[k]);
    }
    return [next_h, next_c];
  }

  /** What M expects next, from its h after a (z, action): logits, mu and log_sigma (latents, mixtures); reward; done. */
  predict_next(h) {
    const mixture = dense(h, this.arrays["rnn.mixture.kernel"], this.arrays["rnn.mixture.bias"]);
    const n = this.latents * this.mixtures;
    return {
      logits: mixture.subarray(0, n),
      mu: mixture.subarray(n, 2 * n),
      log_sigma: mixture.subarray(2 * n),
      reward: dense(h, this.arrays["rnn.reward.kernel"], this.arrays["rnn.reward.bias"])[0],
      done: dense(h, this.arrays["rnn.done.kernel"], this.arrays["rnn.done.bias"])[0], // a logit
    };
  }

  /**
   * A next z drawn from a prediction. `noise` is [uniform in [0, 1), standard normal], one of each for each latent.
   * Temperature τ: mixture weights softmax(logits / τ), variances sigma² · τ.
   */
  sample({ logits, mu, log_sigma }, temperature, [uniform, normal]) {
    const z = new Float32Array(this.latents);
    for (let latent = 0; latent < this.latents; latent++) {
      const first = latent * this.mixtures;
      const weights = softmax(logits.subarray(first, first + this.mixtures), temperature);
      // The Gaussian in whose share of the cumulated weights `uniform` falls.
      let k = 0;
      for (let left = uniform[latent] - weights[0]; left >= 0 && k < this.mixtures - 1; left -= weights[k]) k++;
      z[latent] = mu[first + k] + Math.exp(log_sigma[first + k]) * Math.sqrt(temperature) * normal[latent];
    }
    return z;
  }

  /** The mean of a prediction's mixtures: the z that M expects, without noise. */
  mean({ logits, mu }) {
    const z = new Float32Array(this.latents);
    for (let latent = 0; latent < this.latents; latent++) {
      const first = latent * this.mixtures;
      const weights = softmax(logits.subarray(first, first + this.mixtures), 1);
      for (let k = 0; k < this.mixtures; k++) z[latent] += weights[k] * mu[first + k];
    }
    return z;
  }
}

/** softmax(logits / temperature). */
function softmax(logits, temperature) {
  const top = Math.max(...logits);
  const weights = Array.from(logits, (logit) => Math.exp((logit - top) / temperature));
  const sum = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / sum);
}

/** What a controller does: parameters (biases, then features × actions), features [z, h] to [steering, gas, brake]. */
function act(parameters, features, actions) {
  const a = dense(features, parameters.subarray(actions), parameters.subarray(0, actions)).map(Math.tanh);
  return [a[0], (a[1] + 1) / 2, Math.min(Math.max(a[2], 0), 1)];
}
