/** The worker of `load`: answers calls of the methods of a model, one after another. */
import { Pipeline } from "./hf-xtc.js";

/** @type {Pipeline | undefined} */
let model;
const METHODS = ["classify", "logits", "embed", "tag", "answer"];

/** @param {{method: string, args: any[]}} message @returns {Promise<any>} */
async function call({ method, args }) {
  if (method === "load") {
    const [folder, options] = args;
    model = await Pipeline.load(folder, { ...options, onProgress: (progress) => postMessage({ progress }) });
    return model.about();
  }
  if (!METHODS.includes(method)) throw new Error(`${method} is no method of a model`);
  return /** @type {any} */ (model)[method](...args);
}

onmessage = async ({ data }) => {
  try {
    postMessage({ call: data.call, value: await call(data) });
  } catch (error) {
    postMessage({ call: data.call, error: error instanceof Error ? error.message : String(error) });
  }
};
