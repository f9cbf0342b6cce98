// Calls the built module: each line of standard input {"folder", "options"?, "method", "args"} -> {"value"} or {"error"}.
import { createInterface } from "node:readline";
import { ModelError, load } from "../../web/dist/hf-xtc.js";

const models = new Map();

async function call({ folder, options = {}, method, args = [] }) {
  const key = JSON.stringify([folder, options]);
  if (!models.has(key)) models.set(key, await load(folder, options));
  const model = models.get(key);
  if (method === "about") return { task: model.task, labels: model.labels, maxLength: model.maxLength, bytes: model.bytes };
  const value = await model[method](...args);
  return ["logits", "embed"].includes(method) ? value.map((row) => Array.from(row)) : value;
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    answer = { value: await call(JSON.parse(line)) };
  } catch (error) {
    answer = { error: error instanceof ModelError ? error.message : `not a ModelError: ${error.stack}` };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
