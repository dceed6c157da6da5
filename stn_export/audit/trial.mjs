// One ONNX file in onnxruntime-web (wasm) under Node: node trial.mjs MODULE FILE FEEDS.json OUT.json
import { readFileSync, writeFileSync } from "node:fs";

const [module, file, feedsFile, out] = process.argv.slice(2);
const ort = await import(module);
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const arrays = { float32: Float32Array, uint8: Uint8Array, int64: BigInt64Array };
const session = await ort.InferenceSession.create(readFileSync(file), { executionProviders: ["wasm"] });
const feeds = {};
for (const { name, type, shape, values } of JSON.parse(readFileSync(feedsFile))) {
  const given = type === "int64" ? values.map(BigInt) : values;
  feeds[name] = new ort.Tensor(type, arrays[type].from(given), shape);
}
const found = await session.run(feeds);
const shown = session.outputNames.map((name) => ({ shape: found[name].dims, values: Array.from(found[name].data, Number) }));
writeFileSync(out, JSON.stringify(shown, (_, value) => (Number.isFinite(value) || typeof value !== "number" ? value : String(value))));
