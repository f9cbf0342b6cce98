// Runs packed models: reads {wasm, cases: [{folder, ids, types}]} from standard input, prints what each gives, or its error.
import { readFileSync } from "node:fs";
import { ModelError, PackedModel, bucketOf, hasRelaxedSimd, parseConfig } from "../../web/src/model.js";

const { wasm, cases } = JSON.parse(readFileSync(0, "utf-8"));
const module = new WebAssembly.Module(readFileSync(wasm));

async function run({ folder, ids, types }) {
  try {
    const config = parseConfig(readFileSync(`${folder}/config.json`, "utf-8"));
    const model = await PackedModel.create(config, new Uint8Array(readFileSync(`${folder}/model.safetensors`)), module);
    const { task, numLabels, hiddenSize, maxLength } = model;
    const outputs = Object.entries(model.run(ids, types)).map(([name, values]) => [name, Array.from(values)]);
    model.free();
    return { task, numLabels, hiddenSize, maxLength, ...Object.fromEntries(outputs) };
  } catch (error) {
    return { error: error.message, clean: error instanceof ModelError };
  }
}

const results = [];
for (const one of cases) results.push(await run(one));
const buckets = Array.from({ length: 1401 }, (_, i) => bucketOf(i - 700));
process.stdout.write(JSON.stringify({ results, buckets, relaxed: hasRelaxedSimd() }));
