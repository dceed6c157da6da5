// A picture is turned by hand, drawn at the networks' own size, and run through their ONNX files in every frame.
const SHOWN = 3; // classes of a network
const MARGIN = 0.25; // of the picture's size around it, for windows that reach beyond it
const WARM_UP = 10; // calls of each network before any is timed: the first ones compile and allocate
const TIMED = 15; // latest calls whose median is shown
const PATIENCE = 1000; // milliseconds that either takes at most, unless two calls take longer
const ZOOM = 12; // screen pixels of one of the network's, before the page's layout
const $ = (id) => document.getElementById(id);
const pose = { x: 0, y: 0, angle: 0, scale: 1 };
const about = await (await fetch("play.json")).json();
const { name, channels, height, width, mean, std } = about.input;
const small = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d", {
  willReadFrequently: true,
});
const views = { input: $("input").getContext("2d"), warped: $("warped").getContext("2d") };
let picture, sample = 0, dirty = true, spinning = false, frames = [];

// WebGPU where the browser has a GPU (with "?webgpu" in the address also where software stands in), else WebAssembly.
async function start() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const asked = new URLSearchParams(location.search).has("webgpu");
  if (adapter && (asked || !adapter.info.isFallbackAdapter)) {
    const { description, vendor, architecture } = adapter.info;
    try {
      return await opened("./ort.webgpu.min.mjs", "webgpu", `WebGPU, ${description || `${vendor} ${architecture}`}`);
    } catch (error) {
      console.warn(`WebGPU does not run the networks: ${error}`);
    }
  }
  return opened("./ort.wasm.min.mjs", "wasm", "WebAssembly, one thread");
}

async function opened(file, provider, where) {
  const ort = await import(file);
  ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
  ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
  const networks = [];
  for (const each of about.networks) { // one after the other, as they share the GPU
    const session = await ort.InferenceSession.create(each.file, { executionProviders: [provider] });
    networks.push({ ...each, session });
  }
  return { ort, networks, where };
}

const { ort, networks, where } = await start();
for (const each of networks) {
  each.times = [];
  each.place = document.createElement("section");
  each.place.innerHTML = "<h2></h2><div></div>";
  each.place.firstChild.textContent = `${each.label} (${each.artifact})`;
  $("networks").append(each.place);
}

async function choose(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  picture = image;
  dirty = true;
}

// The networks' input as they are trained to get it, of what is drawn now.
function pixels() {
  const { data } = small.getImageData(0, 0, width, height);
  const values = new Float32Array(channels * height * width);
  for (let place = 0; place < height * width; place++) {
    const colour = [data[4 * place], data[4 * place + 1], data[4 * place + 2]];
    const shown = channels === 1 ? [(colour[0] + colour[1] + colour[2]) / 3] : colour;
    shown.forEach((value, c) => {
      values[c * height * width + place] = (value / 255 - mean[c % mean.length]) / std[c % std.length];
    });
  }
  return values;
}

function draw() {
  small.resetTransform();
  small.fillStyle = ground();
  small.fillRect(0, 0, width, height);
  small.imageSmoothingEnabled = true;
  small.imageSmoothingQuality = "high";
  clutter(+$("clutter").value);
  small.translate(width / 2 + pose.x, height / 2 + pose.y);
  small.rotate((pose.angle * Math.PI) / 180);
  const fit = pose.scale * Math.min(width / picture.width, height / picture.height);
  small.scale(fit, fit);
  small.drawImage(picture, -picture.width / 2, -picture.height / 2);
}

// The colour of the picture's corner, so that what is turned has no edge.
function ground() {
  small.drawImage(picture, 0, 0, width, height);
  const [red, green, blue] = small.getImageData(0, 0, 1, 1).data;
  return `rgb(${red} ${green} ${blue})`;
}

function clutter(count) {
  for (let index = 0; index < count; index++) {
    const at = (salt) => Math.abs(Math.sin(12.9898 * (index + 1) + 78.233 * salt)) % 1;
    small.fillStyle = `hsl(${360 * at(1)} 50% 55%)`;
    small.fillRect(at(2) * width, at(3) * height, (1 + 4 * at(4)) * (width / 32), (1 + 4 * at(5)) * (height / 32));
  }
}

// Outputs of one network by name, and how long they took; one at a time, as a session wants it.
let last = Promise.resolve();
const infer = (network, values) => (last = last.then(() => run(network, values)));

async function run(network, values) {
  const started = performance.now();
  const feeds = { [name]: new ort.Tensor("float32", values, [1, channels, height, width]) };
  const found = await network.session.run(feeds);
  network.times = [...network.times, performance.now() - started].slice(-TIMED);
  return found;
}

// Run the networks in turns until all are warm, forget those times, and time them; slow ones less often.
async function warmUp() {
  draw();
  const values = pixels();
  for (const count of [WARM_UP, TIMED]) {
    const end = performance.now() + PATIENCE;
    networks.forEach((each) => (each.times = []));
    for (let round = 0; round < count && (round < 2 || performance.now() < end); round++) {
      for (const each of networks) await infer(each, values);
    }
  }
}

function median(values) {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

function show(context, from, window) {
  const { canvas } = context;
  const around = window ? MARGIN * ZOOM : 0;
  const [left, top] = [from.width * around, from.height * around];
  [canvas.width, canvas.height] = [from.width * ZOOM + 2 * left, from.height * ZOOM + 2 * top];
  context.imageSmoothingEnabled = false;
  context.drawImage(from, left, top, from.width * ZOOM, from.height * ZOOM);
  if (!window) return;
  context.translate(left, top);
  context.lineWidth = ZOOM / 3;
  context.strokeStyle = "#ffb000";
  context.beginPath();
  window.forEach(([x, y]) => context.lineTo(x * ZOOM, y * ZOOM));
  context.closePath();
  context.stroke();
}

// Corners of the window in pixels, from the grid's outermost points.
function corners({ data, dims: [, rows, columns] }, align) {
  const pixel = (value, size) => (align ? ((value + 1) / 2) * (size - 1) + 0.5 : ((value + 1) / 2) * size);
  const at = (row, column) => 2 * (row * columns + column);
  return [at(0, 0), at(0, columns - 1), at(rows - 1, columns - 1), at(rows - 1, 0)].map((place) => [
    pixel(data[place], width),
    pixel(data[place + 1], height),
  ]);
}

function canvasOf({ data, dims: [, depth, rows, columns] }) {
  const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  const image = new ImageData(columns, rows);
  for (let place = 0; place < rows * columns; place++) {
    for (let c = 0; c < 3; c++) {
      const from = depth === 3 ? c : 0;
      const value = data[from * rows * columns + place] * std[from % std.length] + mean[from % mean.length];
      image.data[4 * place + c] = 255 * value;
    }
    image.data[4 * place + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function tell(network, scores) {
  const values = [...scores.data];
  const most = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b);
  const order = powers.map((power, index) => [power / sum, index]).sort((a, b) => b[0] - a[0]);
  const rows = order.slice(0, SHOWN).map(([share, index], place) => {
    const row = document.createElement("div");
    row.className = place ? "row" : "row best";
    row.innerHTML = "<span></span><i></i><span></span>";
    row.children[0].textContent = about.classes[index] ?? `class ${index}`;
    row.children[1].style.width = `${100 * share}%`;
    row.children[2].textContent = `${(100 * share).toFixed(1)} %`;
    return row;
  });
  network.place.lastChild.replaceChildren(...rows);
}

async function frame(now) {
  if (spinning) {
    pose.angle = ((pose.angle + 1.5 + 180) % 360) - 180;
    $("angle").value = pose.angle;
    dirty = true;
  }
  if (dirty && picture) {
    dirty = false;
    draw();
    const values = pixels();
    for (const each of networks) {
      const found = await infer(each, values);
      tell(each, found[each.output]);
      if (each.grid) show(views.input, small.canvas, corners(found[each.grid], each.align));
      if (each.warped) show(views.warped, canvasOf(found[each.warped]));
    }
    frames = [...frames.filter((each) => now - each < 1000), now];
    const times = networks.map((each) => `${each.label} ${median(each.times).toFixed(1)} ms`).join(", ");
    const rate = spinning ? `; ${frames.length} frames a second` : "";
    $("speed").textContent = `${times} a picture in ${where} (median of the last ${TIMED}, after warm-up)${rate}`;
  }
  requestAnimationFrame(frame);
}

const set = (changes) => {
  Object.assign(pose, changes);
  pose.scale = Math.min(2.5, Math.max(0.3, pose.scale));
  [$("angle").value, $("scale").value] = [pose.angle, pose.scale];
  dirty = true;
};
const turned = (degrees) => ((((pose.angle + degrees + 180) % 360) + 360) % 360) - 180;

// One pointer moves the picture (with shift it turns it); two turn, scale and move it. Positions are kept, as not every
// browser reports how far a finger moved.
const pointers = new Map();
const at = (event) => ({ x: event.clientX, y: event.clientY });
const between = ([one, other]) => ({
  x: (one.x + other.x) / 2,
  y: (one.y + other.y) / 2,
  angle: (Math.atan2(other.y - one.y, other.x - one.x) * 180) / Math.PI,
  reach: Math.hypot(other.x - one.x, other.y - one.y),
});
function moved(before, after) {
  const step = ((1 + 2 * MARGIN) * width) / $("input").clientWidth;
  return { x: pose.x + (after.x - before.x) * step, y: pose.y + (after.y - before.y) * step };
}
$("input").addEventListener("pointerdown", (event) => {
  pointers.set(event.pointerId, at(event));
  $("input").setPointerCapture(event.pointerId);
});
for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
  $("input").addEventListener(end, (event) => pointers.delete(event.pointerId));
}
$("input").addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const two = pointers.size === 2 && between([...pointers.values()]);
  pointers.set(event.pointerId, at(event));
  if (two) {
    const now = between([...pointers.values()]);
    const scale = two.reach ? (pose.scale * now.reach) / two.reach : pose.scale;
    set({ ...moved(two, now), angle: turned(now.angle - two.angle), scale });
  } else if (pointers.size === 1) {
    set(event.shiftKey ? { angle: turned(event.clientX - before.x) } : moved(before, at(event)));
  }
});
$("input").addEventListener("wheel", (event) => {
  event.preventDefault();
  set({ scale: pose.scale * Math.exp(-event.deltaY / 500) });
}, { passive: false });
$("angle").addEventListener("input", () => set({ angle: +$("angle").value }));
$("scale").addEventListener("input", () => set({ scale: +$("scale").value }));
$("clutter").addEventListener("input", () => set({}));
const actions = {
  next: () => choose(about.samples[++sample % about.samples.length]),
  reset: () => set({ x: 0, y: 0, angle: 0, scale: 1 }),
  spin: () => $("spin").setAttribute("aria-pressed", (spinning = !spinning)),
};
for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
const keys = {
  ArrowLeft: () => set({ x: pose.x - 1 }),
  ArrowRight: () => set({ x: pose.x + 1 }),
  ArrowUp: () => set({ y: pose.y - 1 }),
  ArrowDown: () => set({ y: pose.y + 1 }),
  "[": () => set({ angle: turned(-5) }),
  "]": () => set({ angle: turned(5) }),
  "+": () => set({ scale: pose.scale * 1.05 }),
  "-": () => set({ scale: pose.scale / 1.05 }),
};
$("input").addEventListener("keydown", (event) => {
  if (!(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});
async function open(file) {
  if (!file) return;
  const url = URL.createObjectURL(file);
  try {
    await choose(url);
    $("said").textContent = "";
  } catch {
    $("said").textContent = `${file.name} is not an image that this browser can display`;
  } finally {
    URL.revokeObjectURL(url);
  }
}
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  open(event.dataTransfer.files[0]);
});
$("file").addEventListener("change", async () => {
  await open($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});

// For tests: set a pose, and get what went in and what came out.
window.play = {
  async at(changes) {
    set(changes);
    draw();
    const values = pixels();
    const outputs = [];
    for (const each of networks) outputs.push([...(await infer(each, values))[each.output].data]);
    return { values: [...values], outputs };
  },
  frames: () => frames.length,
  pose: () => ({ ...pose }),
  size: () => [picture.width, picture.height],
};
document.title = document.querySelector("h1").textContent = `${about.networks[0].label}, at work`;
await choose(about.samples[0]);
await warmUp();
requestAnimationFrame(frame);
