// The page: it asks the worker for the next piece of the dream each time the browser is about to draw, and shows it.

"use strict";

const LONGEST = 0.1; // seconds that are made up for at once, after a stutter or when the page comes back from hiding
const KEYS = {
  ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down",
  KeyA: "left", KeyD: "right", KeyW: "up", KeyS: "down",
};

const root = document.documentElement;
const $ = (id) => document.getElementById(id);
const held = new Map(); // what is held down (a key, or a finger on a button) and what it means
const sliders = []; // one for each latent, in z's own order
const counts = { steps: 0, pictures: 0, since: performance.now() };

let worker;
let z = null; // as shown last
let request = { begin: true, z: null }; // what the worker is to be asked for next, besides time
let changed = true; // whether there is something to ask for while no time passes
let waiting = false; // for an answer
let scheduled = false; // a look at all this, before the browser draws next
let before = 0; // when time was last asked for

/** loading, running, paused, ended, or why there is no dream. */
function setState(state) {
  root.dataset.state = state;
  $("begin").disabled = !["running", "paused", "ended"].includes(state);
  $("pause").disabled = !["running", "paused"].includes(state);
}

function wake() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(ask); // which a hidden page's browser never calls
}

function ask(now) {
  scheduled = false;
  const running = root.dataset.state === "running";
  if (waiting || !z && !request.begin || !running && !changed) return;
  const seconds = running ? Math.min(Math.max(now - before, 0) / 1000, LONGEST) : 0;
  before = now;
  worker.postMessage({ ...request, seconds, driver: action(), temperature: Number($("temperature").value) });
  request = { begin: false, z: null };
  changed = false;
  waiting = true;
}

function change(what = {}) {
  Object.assign(request, what);
  changed = true;
  wake();
}

/** What the user does, as gym's own keyboard driver would: full steering, full gas, most of the brake. null: nothing. */
function action() {
  if (!held.size) return null;
  const on = new Set(held.values());
  return [on.has("right") - on.has("left"), Number(on.has("up")), 0.8 * on.has("down")];
}

function draw(canvas, bytes) {
  canvas.getContext("2d").putImageData(new ImageData(bytes, canvas.width, canvas.height), 0, 0);
}

function setBar(id, value) {
  $(id).setAttribute("aria-valuenow", value.toFixed(2));
  $(id).firstElementChild.style.transform = `scaleX(${value})`;
}

function show(shown) {
  waiting = false;
  counts.steps += shown.steps;
  if (shown.picture) {
    counts.pictures++;
    draw($("picture"), shown.picture);
    z = shown.z;
    $("driver").dataset.driver = shown.by_user ? "user" : "controller";
    ["steering", "gas", "brake"].forEach((id, k) => setBar(id, shown.action[k]));
    $("total").value = shown.total.toFixed(1).replace("-", "−");
    $("time").value = shown.time.toFixed(1);
  }
  if (shown.expected) {
    draw($("expected"), shown.expected);
    if (!request.z) sliders.forEach((slider, latent) => (slider.value = z[latent])); // not under the user's hand
  }
  if (shown.ended && !request.begin && root.dataset.state === "running") setState("ended");
  showSpeed(shown.milliseconds);
  if (root.dataset.state === "running" || changed) wake();
}

function showSpeed(milliseconds) {
  const now = performance.now();
  const seconds = (now - counts.since) / 1000;
  if (seconds < 1 || !milliseconds) return;
  if (root.dataset.state === "running") {
    $("m-milliseconds").value = milliseconds.m.toFixed(1);
    $("v-milliseconds").value = milliseconds.v.toFixed(1);
    $("step-rate").value = Math.round(counts.steps / seconds);
    $("picture-rate").value = Math.round(counts.pictures / seconds);
  }
  Object.assign(counts, { steps: 0, pictures: 0, since: now });
}

function begin() {
  setState("running");
  change({ begin: true, z: null });
}

function pause(paused) {
  setState(paused ? "paused" : "running");
  before = performance.now();
  Object.assign(counts, { steps: 0, pictures: 0, since: before });
  wake();
}

/** The sizes are the binary's. The latents that V uses most come first. */
function build({ sizes, spread }) {
  for (const canvas of [$("picture"), $("expected")]) canvas.width = canvas.height = sizes.image_size;
  for (const element of document.querySelectorAll("[data-size]")) element.textContent = sizes[element.dataset.size];
  const order = spread.map((_, k) => k).sort((a, b) => spread[b] - spread[a]);
  for (const latent of order) {
    const label = document.createElement("label");
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: -4, max: 4, step: 0.01, value: 0 });
    slider.setAttribute("aria-label", `z ${latent}`);
    slider.addEventListener("input", () => {
      if (root.dataset.state === "running") pause(true);
      request.z ??= Float32Array.from(z);
      request.z[latent] = slider.value;
      change();
    });
    label.append(String(latent), slider);
    $("latents").append(label);
    sliders[latent] = slider;
  }
}

function setLanguage() {
  const wanted = [location.hash.slice(1), ...navigator.languages].map((language) => language.slice(0, 2));
  root.lang = wanted.find((language) => ["en", "ko"].includes(language)) ?? "en";
  document.title = document.querySelector(`h1 [lang=${root.lang}]`).textContent;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hreflang === root.lang) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

function hold(what, meaning) {
  held.set(what, meaning);
  heldChanged();
}

function letGo(what) {
  if (held.delete(what)) heldChanged();
}

function heldChanged() {
  const on = new Set(held.values());
  for (const button of document.querySelectorAll("[data-key]")) {
    button.classList.toggle("held", on.has(button.dataset.key));
  }
  change();
}

function listen() {
  addEventListener("hashchange", setLanguage);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const meaning = KEYS[event.code];
    const arrow = event.code.startsWith("Arrow");
    if (meaning && !(arrow && event.target.type === "range")) {
      event.preventDefault(); // the page does not scroll
      if (!event.repeat) hold(event.code, meaning);
    } else if (event.code === "KeyP" && !event.repeat) $("pause").click();
    else if (event.code === "KeyN" && !event.repeat) $("begin").click();
  });
  addEventListener("keyup", (event) => letGo(event.code));
  addEventListener("blur", () => {
    held.clear(); // the browser tells nobody that a key was let go elsewhere
    heldChanged();
  });
  for (const button of document.querySelectorAll("[data-key]")) {
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      hold(event.pointerId, button.dataset.key);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      button.addEventListener(end, (event) => letGo(event.pointerId));
    }
    button.addEventListener("contextmenu", (event) => event.preventDefault()); // of a long touch
    button.addEventListener("keydown", (event) => {
      if ([" ", "Enter"].includes(event.key) && !event.repeat) hold(event.code, button.dataset.key);
    });
  }
  $("begin").addEventListener("click", begin);
  $("pause").addEventListener("click", () => pause(root.dataset.state === "running"));
  $("temperature").addEventListener("input", () => {
    $("temperature-value").value = Number($("temperature").value).toFixed(2);
  });
  // After a drag with the mouse the arrow keys drive again.
  $("temperature").addEventListener("pointerup", () => $("temperature").blur());
}

function startWorker() {
  if (location.protocol === "file:") return setState("unserved");
  worker = new Worker("dream.js");
  worker.onerror = () => setState("broken");
  worker.onmessage = ({ data }) => {
    if (data.reason) return setState(data.reason);
    build(data);
    worker.onmessage = ({ data }) => show(data);
    setState(matchMedia("(prefers-reduced-motion: reduce)").matches ? "paused" : "running");
    before = performance.now();
    wake();
  };
}

setLanguage();
setState("loading");
listen();
startWorker();
