// Times a packed model beside onnxruntime-web on one thread; benchmarks/web.py calls it, and says what it reads and prints.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web/wasm";
import { PackedModel } from "./src/model.js";

const { folder, wasm, onnx, shapes, repeats, vocabulary, check } = JSON.parse(readFileSync(0, "utf-8"));
const WARM_UP = 20; // calls of each runtime, during which the engine compiles WebAssembly for speed in the background
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

/** Token ids that are no special tokens, the same every time. */
function batch(rows, tokens) {
  let state = 1;
  const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0);
  return Array.from({ length: rows }, () => Array.from({ length: tokens }, () => 5 + (next() % (vocabulary - 5))));
}

function inputs(rows) {
  const dims = [rows.length, rows[0].length];
  const tensor = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
  const ids = rows.flat();
  return { input_ids: tensor(ids), attention_mask: tensor(ids.map(() => 1)), token_type_ids: tensor(ids.map(() => 0)) };
}

const config = JSON.parse(readFileSync(`${folder}/config.json`, "utf-8"));
const weights = new Uint8Array(readFileSync(`${folder}/model.safetensors`));
const session = await ort.InferenceSession.create(readFileSync(onnx), { executionProviders: ["wasm"] });

const runtimes = {};
for (const [name, file] of Object.entries(wasm)) {
  const bytes = readFileSync(file);
  if (!WebAssembly.validate(bytes)) continue; // an engine without relaxed SIMD
  const model = await PackedModel.create(config, weights, bytes);
  runtimes[name] = (rows) => async () => model.run(rows).logits;
}
runtimes.onnxruntime_web = (rows) => {
  const feeds = inputs(rows);
  return async () => (await session.run(feeds)).logits.data;
};
const found = {};
for (const [rows, tokens] of shapes) {
  const ids = batch(rows, tokens);
  const calls = Object.entries(runtimes).map(([name, make]) => [name, make(ids), []]);
  for (let repeat = -WARM_UP; repeat < repeats; ++repeat)
    for (const [, call, times] of calls) {
      const start = performance.now();
      await call();
      if (repeat >= 0) times.push(performance.now() - start);
    }
  found[`${rows}x${tokens}`] = Object.fromEntries(calls.map(([name, , times]) => [name, times]));
}
const logits = Object.fromEntries(Object.entries(runtimes).map(([name, make]) => [name, make([check])]));
for (const name in logits) logits[name] = Array.from(await logits[name]());
process.stdout.write(JSON.stringify({ milliseconds: found, logits, node: process.version, onnxruntime_web: ort.env.versions.web }));
