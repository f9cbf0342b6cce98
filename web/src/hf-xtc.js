/**
 * Runs packed models of hf_xtc in browsers and Node.
 *
 *     import { load } from "hf-xtc";
 *     const model = await load("model/");
 *     await model.classify(["a quietly moving film"]);
 */
import { ModelError } from "./errors.js";
import { Pipeline } from "./pipeline.js";

export { ModelError } from "./errors.js";
export { PackedModel } from "./model.js";
export { Tokenizer } from "./tokenizer.js";
export { Pipeline };

/** @typedef {import("./pipeline.js").LoadOptions} LoadOptions */
/** @typedef {import("./pipeline.js").About} About */
/** @typedef {import("./pipeline.js").Text} Text */
/** @typedef {import("./pipeline.js").Label} Label */
/** @typedef {import("./pipeline.js").Entity} Entity */
/** @typedef {import("./pipeline.js").Answer} Answer */
/** @typedef {import("./pipeline.js").Progress} Progress */
/** @typedef {About & Pick<Pipeline, "classify" | "logits" | "embed" | "tag" | "answer" | "free">} Model */

/**
 * Loads a packed model.
 * @param {string | URL} folder Where config.json, model.safetensors and tokenizer.json are: a URL, or in Node a path.
 * @param {LoadOptions} [options]
 * @returns {Promise<Model>}
 * @throws {ModelError} In one sentence what is wrong: no network, no such file, or a file that is no packed model.
 */
export async function load(folder, options = {}) {
  const inPage = typeof Worker !== "undefined" && typeof document !== "undefined";
  const base = inPage ? new URL(folder, document.baseURI).href : folder;
  return (options.worker ?? inPage) ? RemoteModel.load(base, options) : Pipeline.load(base, options);
}

/** A model in a worker: the methods of `Pipeline`, called by messages. */
class RemoteModel {
  #worker;
  /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
  #waiting = new Map();
  #calls = 0;
  task = "";
  /** @type {string[]} */
  labels = [];
  maxLength = 0;
  bytes = 0;

  /** @param {string | URL} folder @param {LoadOptions} options @returns {Promise<RemoteModel>} */
  static async load(folder, { onProgress, cache, maxLength }) {
    const model = new RemoteModel(onProgress ?? (() => {}));
    try {
      return Object.assign(model, await model.#call("load", [String(folder), { cache, maxLength }]));
    } catch (error) {
      model.free();
      throw error;
    }
  }

  /** @param {(progress: import("./files.js").Progress) => void} onProgress */
  constructor(onProgress) {
    this.#worker = new Worker(new URL("./hf-xtc-worker.js", import.meta.url), { type: "module", name: "hf-xtc" });
    this.#worker.onmessage = ({ data }) => {
      if (data.progress) return onProgress(data.progress);
      const call = this.#waiting.get(data.call);
      this.#waiting.delete(data.call);
      if ("error" in data) call?.reject(new ModelError(data.error));
      else call?.resolve(data.value);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      const why = event.message ? ` (${event.message})` : "";
      this.#stop(`The worker stopped${why}. Serve hf-xtc-worker.js beside hf-xtc.js, or load with {worker: false}.`);
    };
  }

  /** @param {Parameters<Pipeline["classify"]>} args @returns {ReturnType<Pipeline["classify"]>} */
  classify(...args) {
    return this.#call("classify", args);
  }

  /** @param {Parameters<Pipeline["logits"]>} args @returns {ReturnType<Pipeline["logits"]>} */
  logits(...args) {
    return this.#call("logits", args);
  }

  /** @param {Parameters<Pipeline["embed"]>} args @returns {ReturnType<Pipeline["embed"]>} */
  embed(...args) {
    return this.#call("embed", args);
  }

  /** @param {Parameters<Pipeline["tag"]>} args @returns {ReturnType<Pipeline["tag"]>} */
  tag(...args) {
    return this.#call("tag", args);
  }

  /** @param {Parameters<Pipeline["answer"]>} args @returns {ReturnType<Pipeline["answer"]>} */
  answer(...args) {
    return this.#call("answer", args);
  }

  free() {
    this.#stop("The model was freed.");
  }

  /** @param {string} why */
  #stop(why) {
    this.#worker.terminate();
    for (const { reject } of this.#waiting.values()) reject(new ModelError(why));
    this.#waiting.clear();
    this.#call = () => Promise.reject(new ModelError(why));
  }

  /** @type {(method: string, args: any[]) => Promise<any>} */
  #call = (method, args) =>
    new Promise((resolve, reject) => {
      const call = this.#calls++;
      this.#waiting.set(call, { resolve, reject });
      this.#worker.postMessage({ call, method, args });
    });
}
