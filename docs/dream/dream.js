// The dream, in a worker thread: the page asks for so many seconds of it, and gets what is to be shown.
//
// As models/worlds.py's DreamWorld, for one car. Nothing runs here unless the page asks, and a page in the background
// does not ask.

"use strict";

importScripts("models.js");

const FRAME_RATE = 50; // of the game: M has learned steps of this length
const MOST_STEPS = 5; // at once; a computer that falls further behind dreams more slowly
const EXPECTED_EVERY = 5; // steps from one picture of what M expects to the next

/** One dream. Between two steps it knows what M expects next, which is what the page shows and what z is drawn from. */
class Dream {
  /** From one of the starts in the binary: a window of real frames that warms M up. */
  constructor({ sizes, arrays }, rnn, start) {
    const { latents, actions } = sizes;
    const length = arrays["starts.mu"].shape[1];
    const row = (name, k, size) => arrays[name].slice((start * length + k) * size, (start * length + k + 1) * size);
    this.controller = arrays.controller;
    this.actions = actions;
    this.rnn = rnn;
    this.state = rnn.initial_state();
    for (let k = 0; k < length - 1; k++) {
      this.state = rnn.update_state(row("starts.mu", k, latents), row("starts.action", k, actions), this.state);
    }
    this.z = row("starts.mu", length - 1, latents);
    this.frames = this.total = 0;
    this.ended = false;
    this.look(null);
  }

  /** Choose the action at this z, the controller's where `driver` has none, and let M predict what it leads to. */
  look(driver) {
    this.action = driver ?? act(this.controller, [...this.z, ...this.state[0]], this.actions);
    [this.prediction, this.next_state] = this.rnn.step(this.z, this.action, this.state);
  }

  /** One frame. `noise` is [uniform, normal, uniform]: one of each for each latent, and one number for the end. */
  step(driver, temperature, [uniform, normal, end]) {
    this.total += this.prediction.reward;
    this.frames++;
    this.ended = end < sigmoid(this.prediction.done);
    if (this.ended) return;
    this.state = this.next_state;
    this.z = this.rnn.sample(this.prediction, temperature, [uniform, normal]);
    this.look(driver);
  }
}

function draw_noise(latents) {
  const uniform = Array.from({ length: latents }, Math.random);
  // Box and Muller: two uniform numbers make a normal one.
  const normal = uniform.map(() => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random()));
  return [uniform, normal, Math.random()];
}

/** Numbers from 0 to 1, three a pixel, to the bytes of an ImageData. */
function to_rgba(picture) {
  const bytes = new Uint8ClampedArray((picture.length / 3) * 4).fill(255);
  for (let k = 0, n = 0; k < picture.length; k += 3, n += 4) {
    for (let colour = 0; colour < 3; colour++) bytes[n + colour] = 255 * picture[k + colour]; // clamps and rounds
  }
  return bytes;
}

let weights, vae, rnn, dream, driver;
let owed = 0; // steps, a fraction of one among them
let last_expected = 0; // the step
const milliseconds = { m: 0, v: 0 }; // of one step of M, of one picture of V: running averages

function timed(name, work) {
  const start = performance.now();
  const result = work();
  const took = performance.now() - start;
  milliseconds[name] = milliseconds[name] ? 0.95 * milliseconds[name] + 0.05 * took : took;
  return result;
}

const picture_of = (z) => timed("v", () => to_rgba(vae.decode(z)));

/**
 * What the page asks for: `seconds` of the dream (0 while it is paused), `driver` (the user's action, or null),
 * `temperature`, `begin` (a new dream), `z` (as the user has set it, or null). Returns what is to be shown; without
 * `picture` where nothing has changed, and without `expected` where that was shown a moment ago.
 */
function answer(request) {
  let changed = request.begin || request.z !== null || String(request.driver) !== String(driver);
  driver = request.driver;
  if (request.begin) {
    const starts = weights.arrays["starts.mu"].shape[0];
    dream = new Dream(weights, rnn, Math.floor(Math.random() * starts));
    owed = last_expected = 0;
  }
  if (request.z) dream.z = request.z;
  if (changed && !dream.ended) dream.look(driver);
  owed = Math.min(owed + FRAME_RATE * request.seconds, MOST_STEPS);
  let steps = 0;
  for (; owed >= 1 && !dream.ended; owed--, steps++) {
    timed("m", () => dream.step(driver, request.temperature, draw_noise(weights.sizes.latents)));
  }
  changed ||= steps > 0;
  if (!changed) return { steps };
  const { z, action, frames, total, ended } = dream;
  const shown = { steps, z, action, total, ended, time: frames / FRAME_RATE, by_user: driver !== null, milliseconds };
  shown.picture = picture_of(z);
  if (!request.seconds || ended || frames - last_expected >= EXPECTED_EVERY) {
    shown.expected = picture_of(rnn.mean(dream.prediction));
    last_expected = frames;
  }
  return shown;
}

/** The standard deviation of each latent over real frames: V makes no use of those where it is next to nothing. */
function spread(mu, latents) {
  const sums = new Float64Array(latents), squares = new Float64Array(latents);
  mu.forEach((value, k) => {
    sums[k % latents] += value;
    squares[k % latents] += value ** 2;
  });
  const n = mu.length / latents;
  return Array.from(sums, (sum, k) => Math.sqrt(squares[k] / n - (sum / n) ** 2));
}

async function load() {
  let response;
  try {
    response = await fetch("dream.bin", { cache: "no-cache" });
  } catch (error) {
    throw new WeightsError("missing", error.message);
  }
  if (!response.ok) throw new WeightsError("missing", response.status);
  weights = read_weights(await response.arrayBuffer());
  vae = new VAE(weights);
  rnn = new MDNRNN(weights);
}

load().then(
  () => {
    self.onmessage = ({ data }) => self.postMessage(answer(data));
    const { sizes, arrays } = weights;
    self.postMessage({
      sizes: { ...sizes, image_size: vae.image_size, parameters: arrays.controller.length },
      spread: spread(arrays["starts.mu"], sizes.latents),
    });
  },
  (error) => self.postMessage({ reason: error.reason ?? "damaged" }),
);
