// Answers requests with transformers.js, for test_transformers_js.py: in Node, or in a page of headless Chromium.
//
//   node transformers_js.mjs node|chromium ORIGIN MODULES CACHE < requests.json > answers.json
//
// ORIGIN serves the exported folders under /models/, and the npm packages, which are also in the folder MODULES, under
// /modules/; CACHE is a folder for what Node downloads. A request names a `folder`, and has either the `arrays` of a model's inputs and its `auto_class`, or a
// `task` with `input` and `options` of its pipeline.

/** The answers to requests: outputs by name, or what a pipeline returns. Runs in a page, too, so it is self-contained. */
async function answer(library, requests, origin) {
  const { env, Tensor, pipeline } = library;
  env.allowLocalModels = false;
  env.remoteHost = `${origin}/models/`;
  env.remotePathTemplate = "{model}/";
  env.useBrowserCache = env.useWasmCache = false;
  const answers = [];
  for (const { folder, auto_class, arrays, task, input, options, load } of requests) {
    if (task) {
      const pipe = await pipeline(task, folder, load ?? {});
      const found = await pipe(...input, options ?? {});
      answers.push(found.tolist ? found.tolist() : found);
      continue;
    }
    const model = await library[auto_class].from_pretrained(folder, load ?? {});
    const tensor = (rows) => new Tensor("int64", rows.flat().map(BigInt), [rows.length, rows[0].length]);
    const inputs = Object.fromEntries(Object.entries(arrays).map(([name, rows]) => [name, tensor(rows)]));
    const outputs = Object.entries(await model(inputs)).map(([name, value]) => [name, value.tolist()]);
    answers.push(Object.fromEntries(outputs));
  }
  return answers;
}

async function inNode(requests, origin, modules, cache) {
  const library = await import(`${modules}/@huggingface/transformers/dist/transformers.node.mjs`);
  library.env.cacheDir = cache;
  return answer(library, requests, origin);
}

/** The page loads nothing but from ORIGIN; a request elsewhere is an error. */
async function inChromium(requests, origin, modules) {
  const { chromium } = await import(`${modules}/playwright-core/index.mjs`);
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
  try {
    const page = await browser.newPage();
    const elsewhere = [];
    page.on("request", (request) => request.url().startsWith(origin) || elsewhere.push(request.url()));
    await page.goto(`${origin}/models/`);
    const code = `(async () => {
      const library = await import("/modules/@huggingface/transformers/dist/transformers.min.js");
      const runtime = "${origin}/modules/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify";
      library.env.backends.onnx.wasm.wasmPaths = { mjs: runtime + ".mjs", wasm: runtime + ".wasm" };
      return (${answer})(library, ${JSON.stringify(requests)}, "${origin}");
    })()`;
    const answers = await page.evaluate(code);
    if (elsewhere.length) throw new Error(`The page asked ${elsewhere}`);
    return answers;
  } finally {
    await browser.close();
  }
}

const [where, origin, modules, cache] = process.argv.slice(2);
let text = "";
for await (const chunk of process.stdin) text += chunk;
const run = where === "node" ? inNode : inChromium;
process.stdout.write(JSON.stringify(await run(JSON.parse(text), origin, modules, cache)) + "\n");
