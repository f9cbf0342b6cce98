// What a packed model makes of texts, in Node or in Chromium: node web_logits.mjs MODULE FOLDER [CHROMIUM PAGE] with a JSON
// list of texts on standard input. MODULE is hf-xtc.js; both are URLs, which Chromium opens from PAGE. Prints a list of
// lists: the logits of a classifier, the vectors of an embedder, or the logits of all tokens of a tagger, for each text.
import { readFileSync } from "node:fs";
import { chromium } from "../../web/node_modules/playwright-core/index.mjs";

const [module, folder, executablePath, address] = process.argv.slice(2);
const texts = JSON.parse(readFileSync(0, "utf-8"));

/** Runs in Node or in the page. */
async function run({ module, folder, texts }) {
  const { Pipeline } = await import(module);
  const pipe = await Pipeline.load(folder, { cache: false });
  const onTokens = (text) => pipe.model.run([pipe.tokenizer.encode(text).ids], null).logits;
  const rows = pipe.onTokens ? texts.map(onTokens) : await (pipe.classifies ? pipe.logits(texts) : pipe.embed(texts));
  return rows.map((row) => Array.from(row));
}

async function runInChromium(options) {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  try {
    const page = await browser.newPage();
    await page.goto(address);
    return await page.evaluate(run, options);
  } finally {
    await browser.close();
  }
}

const found = await (executablePath ? runInChromium : run)({ module, folder, texts });
process.stdout.write(JSON.stringify(found));
