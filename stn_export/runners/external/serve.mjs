// One ONNX file in onnxruntime-web (wasm) under Node.js: node serve.mjs MODULE JOB; the messages are those of serve.py.
import { readFileSync, readSync, writeSync } from "node:fs";

const [module, text] = process.argv.slice(2);
const job = JSON.parse(text);
const KINDS = { float32: Float32Array, uint8: Uint8Array, int8: Int8Array, int32: Int32Array, int64: BigInt64Array, bool: Uint8Array, float64: Float64Array };
const SHORT = 0.01; // seconds, as in serve.py

function read(size) {
  const content = Buffer.alloc(size);
  for (let done = 0; done < size; ) {
    const count = readSync(job.read, content, done, size - done);
    if (!count) process.exit(0); // nobody asks any more
    done += count;
  }
  return content;
}

function receive() {
  const line = [];
  for (let byte = read(1)[0]; byte !== 10; byte = read(1)[0]) line.push(byte);
  const head = JSON.parse(Buffer.from(line).toString());
  const arrays = head.arrays.map(({ name, type, shape }) => {
    const Kind = KINDS[type];
    const content = read(Kind.BYTES_PER_ELEMENT * shape.reduce((a, b) => a * b, 1));
    return { name, type, shape, values: new Kind(new Uint8Array(content).buffer) };
  });
  return { head, arrays };
}

function write(content) {
  for (let done = 0; done < content.length; ) done += writeSync(job.write, content, done);
}

function send(head, arrays = []) {
  const listed = arrays.map(({ name, type, shape }) => ({ name, type, shape }));
  write(Buffer.from(JSON.stringify({ ...head, arrays: listed }) + "\n"));
  for (const { values } of arrays) write(Buffer.from(values.buffer, values.byteOffset, values.byteLength));
}

let ort, session;
let seconds = 0;
const placed = {};
async function call(arrays) {
  const feeds = {};
  for (const { name, type, shape, values } of arrays) feeds[name] = new ort.Tensor(type, values, shape);
  const found = await session.run(feeds);
  return job.outputs.map((name) => ({ name, type: found[name].type, shape: found[name].dims, values: found[name].data }));
}

async function answer({ head, arrays }) {
  if (head.place) {
    if (!session) {
      ort = await import(module);
      ort.env.wasm.numThreads = job.threads;
      ort.env.logLevel = "error";
      session = await ort.InferenceSession.create(readFileSync(job.file), { executionProviders: ["wasm"] });
    }
    placed[head.batch] = arrays;
    return send({});
  }
  if (head.hot && seconds < SHORT) await call(placed[head.batch]);
  const start = performance.now();
  const outputs = await call(placed[head.batch]);
  seconds = (performance.now() - start) / 1e3;
  return send({ seconds }, outputs);
}

for (;;) {
  const asked = receive();
  try {
    await answer(asked);
  } catch (error) {
    send({ failed: String(error) });
  }
}
