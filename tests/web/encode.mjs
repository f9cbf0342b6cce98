// Encodes the texts of each line of standard input: {"folder", "texts", "longest"?} -> {"encodings"} or {"error"}.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { Tokenizer } from "../../web/src/tokenizer.js";

const tokenizers = new Map();

async function tokenizer(folder, longest) {
  const key = `${folder} ${longest}`;
  if (!tokenizers.has(key)) {
    const [file, options] = ["tokenizer.json", "tokenizer_config.json"].map((name) =>
      JSON.parse(readFileSync(`${folder}/${name}`, "utf8")),
    );
    tokenizers.set(key, await Tokenizer.create(file, options, longest));
  }
  return tokenizers.get(key);
}

for await (const line of createInterface({ input: process.stdin })) {
  const { folder, texts, longest } = JSON.parse(line);
  let answer;
  try {
    const encoder = await tokenizer(folder, longest ?? 512);
    const encodings = texts.map((text) => {
      const { ids, types, tokens, parts } = encoder.encode(text);
      return { ids, types, parts, places: tokens.map(({ start, end }) => [start, end]) };
    });
    answer = { encodings };
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
