// Loads damaged models one after another: a line of standard input is a folder, a line of output what became of it. Needs
// --expose-gc, so that a peak is that of one model.
import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { ModelError, PackedModel, parseConfig } from "../../web/src/model.js";

const module = new WebAssembly.Module(readFileSync(process.argv[2]));
const IDS = [[1, 5, 9, 2], [3, 4]];

/** Bytes of this process, by the key of /proc. */
const status = (key) => Number(new RegExp(`${key}:\\s+(\\d+)`).exec(readFileSync("/proc/self/status", "utf-8"))[1]) * 1024;

async function load(config, bytes) {
  try {
    const model = await PackedModel.create(parseConfig(config), bytes, module);
    const { hidden, logits } = model.run(IDS);
    const isFinite = [hidden, logits ?? []].every((values) => values.every(Number.isFinite));
    return { outcome: "loaded", broken: isFinite ? "" : "numbers that are not finite" };
  } catch (error) {
    const message = String(error.message);
    const clean = error instanceof ModelError && message.endsWith(".") && message.length < 1000;
    return { outcome: clean ? "ModelError" : error.name, broken: clean ? "" : String(error.stack).slice(0, 500), message };
  }
}

for await (const folder of createInterface({ input: process.stdin })) {
  const config = readFileSync(`${folder}/config.json`, "utf-8");
  const bytes = new Uint8Array(readFileSync(`${folder}/model.safetensors`));
  gc();
  writeFileSync("/proc/self/clear_refs", "5"); // the peak starts anew
  const start = performance.now();
  const found = await load(config, bytes);
  const seconds = (performance.now() - start) / 1000;
  process.stdout.write(`${JSON.stringify({ broken: "", ...found, seconds, peak: status("VmHWM") })}\n`);
}
