/**
 * Parses the text of a config.json.
 *
 * @param {string} text
 * @returns {unknown}
 * @throws {ModelError} If it is no JSON, or too long for a config.
 */
export function parseConfig(text: string): unknown;
/**
 * A copy of a parsed config.json, with the family's own fields under BERT's names.
 *
 * @param {unknown} given
 * @returns {{config: Config, family: Family}}
 * @throws {ModelError} Unless it is of a packed model that the operator runs.
 */
export function readConfig(given: unknown): {
    config: Config;
    family: Family;
};
/**
 * @param {string} why
 * @returns {ModelError}
 */
export function notServed(why: string): ModelError;
/**
 * The name of the class that wrote a config.
 *
 * @param {Config} config
 * @returns {string}
 */
export function architectureOf(config: Config): string;
/**
 * The name of the task, as hf_xtc/runtime.py tells it.
 *
 * @param {Config} config
 * @returns {string}
 */
export function taskOf(config: Config): string;
/** @typedef {Record<string, any>} Config */
/**
 * What a quantizer's codes are.
 *
 * @typedef {object} Codes
 * @property {2 | 3 | 16 | 256} levels
 * @property {number} perByte
 */
/** @type {Map<unknown, Codes>} */
export const QUANTIZERS: Map<unknown, Codes>;
/** @type {Map<unknown, Family>} */
export const FAMILIES: Map<unknown, Family>;
export type Config = Record<string, any>;
/**
 * What a quantizer's codes are.
 */
export type Codes = {
    levels: 2 | 3 | 16 | 256;
    perByte: number;
};
export type Family = {
    /**
     * Of the encoder's tensors in the file of a model with a head.
     */
    prefix: string;
    /**
     * Path of the layers.
     */
    layer: string;
    /**
     * Query, key, value, attention's output, feed-forward in and out, under a layer.
     */
    linears: string[];
    /**
     * LayerNorms behind attention and feed-forward, under a layer.
     */
    norms: string[];
    /**
     * A sequence classifier's first linear, the activation behind it, and its
     * last linear.
     */
    head: [string, "tanh" | "gelu" | "relu", string];
    /**
     * Embeddings; with a third, token types.
     */
    tables: string[];
    /**
     * Where positions are counted from a padding token's id on, the config's field of that id ("" for 1).
     */
    padding: string | null;
    /**
     * Whether a bias for each distance of two tokens is added to the scores.
     */
    biased: boolean;
    /**
     * Fields of a config: BERT's name and the family's.
     */
    names: [string, string][];
};
import { ModelError } from "./errors.js";
