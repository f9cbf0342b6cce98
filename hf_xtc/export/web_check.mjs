// Runs a packed model in the module for browsers: node web_check.mjs MODULE FOLDER. The first line of output is how the
// module embeds, {"pooling", "normalize", "maxLength", "prompt"}. Each line of standard input is {"ids": [[...]],
// "types": [[...]] or null}; each other line of output {"hidden", "logits"}, float32 in base64. Or a line is {"error"}.
import { createInterface } from "node:readline";

const [module, folder] = process.argv.slice(2);
const base64 = (floats) => (floats ? Buffer.from(floats.buffer, floats.byteOffset, floats.byteLength).toString("base64") : null);
const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");

try {
  const { Pipeline } = await import(module);
  const pipe = await Pipeline.load(folder, {});
  say(pipe.sentences);
  for await (const line of createInterface({ input: process.stdin })) {
    const { ids, types } = JSON.parse(line);
    const { hidden, logits } = pipe.model.run(ids, types);
    say({ hidden: base64(hidden), logits: base64(logits) });
  }
} catch (error) {
  say({ error: String(error.message ?? error) });
}
