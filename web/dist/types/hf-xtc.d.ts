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
export function load(folder: string | URL, options?: LoadOptions): Promise<Model>;
export { ModelError } from "./errors.js";
export { PackedModel } from "./model.js";
export { Tokenizer } from "./tokenizer.js";
export { Pipeline };
export type LoadOptions = import("./pipeline.js").LoadOptions;
export type About = import("./pipeline.js").About;
export type Text = import("./pipeline.js").Text;
export type Label = import("./pipeline.js").Label;
export type Entity = import("./pipeline.js").Entity;
export type Answer = import("./pipeline.js").Answer;
export type Progress = import("./pipeline.js").Progress;
export type Model = About & Pick<Pipeline, "classify" | "logits" | "embed" | "tag" | "answer" | "free">;
import { Pipeline } from "./pipeline.js";
