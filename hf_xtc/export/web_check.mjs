// Runs a packed model in the module for browsers: node web_check.mjs MODULE FOLDER. Each line of standard input is
// {"ids": [[...]], "types": [[...]] or null}; each line of output {"hidden", "logits"}, float32 in base64, or {"error"}.
import { createInterface } from "node:readline";

const [module, folder] = process.argv.slice(2);
const base64 = (floats) => (floats ? Buffer.from(floats.buffer, floats.byteOffset, floats.byteLength).toString("base64") : null);
const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");

try {
  const { Pipeline } = await import(module);
  const pipe = await Pipeline.load(folder, {});
  for await (const line of createInterface({ input: process.stdin })) {
    const { ids, types } = JSON.parse(line);
    const { hidden, logits } = pipe.model.run(ids, types);
    say({ hidden: base64(hidden), logits: base64(logits) });
  }
} catch (error) {
  say({ error: String(error.message ?? error) });
}
