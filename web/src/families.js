/** The families of models, as in hf_xtc/reader.py, and what a config.json must say. */
import { ModelError } from "./errors.js";
import { MOST_JSON_BYTES, short } from "./safetensors.js";

/** @typedef {Record<string, any>} Config */

/**
 * What a quantizer's codes are.
 *
 * @typedef {object} Codes
 * @property {2 | 3 | 16 | 256} levels
 * @property {number} perByte
 */

/** @type {Map<unknown, Codes>} */
export const QUANTIZERS = new Map([
  ["binary", { levels: 2, perByte: 8 }],
  ["ternary", { levels: 3, perByte: 5 }],
  ["int4", { levels: 16, perByte: 2 }],
  ["int8", { levels: 256, perByte: 1 }],
]);

/**
 * @typedef {object} Family
 * @property {string} prefix Of the encoder's tensors in the file of a model with a head.
 * @property {string} layer Path of the layers.
 * @property {string[]} linears Query, key, value, attention's output, feed-forward in and out, under a layer.
 * @property {string[]} norms LayerNorms behind attention and feed-forward, under a layer.
 * @property {[string, "tanh" | "gelu" | "relu", string]} head A sequence classifier's first linear, the activation behind it, and its
 *   last linear.
 * @property {string[]} tables Embeddings; with a third, token types.
 * @property {string | null} padding Where positions are counted from a padding token's id on, the config's field of that id ("" for 1).
 * @property {boolean} biased Whether a bias for each distance of two tokens is added to the scores.
 * @property {[string, string][]} names Fields of a config: BERT's name and the family's.
 */

const TABLES = ["word_embeddings", "position_embeddings", "token_type_embeddings"];
/** @type {Family} */
const BERT = {
  prefix: "bert",
  layer: "encoder.layer",
  linears: [
    ...["query", "key", "value"].map((name) => `attention.self.${name}`),
    ...["attention.output.dense", "intermediate.dense", "output.dense"],
  ],
  norms: ["attention.output.LayerNorm", "output.LayerNorm"],
  head: ["pooler.dense", "tanh", "classifier"],
  tables: TABLES,
  padding: null,
  biased: false,
  names: [],
};
/** @type {Family["head"]} */
const ROBERTA_HEAD = ["classifier.dense", "tanh", "classifier.out_proj"];
/** @type {Family} */
const ROBERTA = { ...BERT, prefix: "roberta", head: ROBERTA_HEAD, padding: "pad_token_id" };

/** @type {Map<unknown, Family>} */
export const FAMILIES = new Map([
  ["xtc_bert", BERT],
  ["xtc_roberta", ROBERTA],
  ["xtc_xlm_roberta", ROBERTA],
  ["xtc_camembert", ROBERTA],
  ["xtc_electra", { ...BERT, prefix: "electra", head: ["classifier.dense", "gelu", "classifier.out_proj"] }],
  [
    "xtc_mpnet",
    {
      ...BERT,
      prefix: "mpnet",
      linears: [...[..."qkvo"].map((name) => `attention.attn.${name}`), "intermediate.dense", "output.dense"],
      norms: ["attention.LayerNorm", "output.LayerNorm"],
      head: ROBERTA_HEAD,
      tables: TABLES.slice(0, 2),
      padding: "",
      biased: true,
    },
  ],
  [
    "xtc_distilbert",
    {
      ...BERT,
      prefix: "distilbert",
      layer: "transformer.layer",
      linears: [...["q", "k", "v", "out"].map((name) => `attention.${name}_lin`), "ffn.lin1", "ffn.lin2"],
      norms: ["sa_layer_norm", "output_layer_norm"],
      head: ["pre_classifier", "relu", "classifier"],
      tables: TABLES.slice(0, 2),
      names: [
        ["hidden_size", "dim"],
        ["intermediate_size", "hidden_dim"],
        ["num_attention_heads", "n_heads"],
        ["num_hidden_layers", "n_layers"],
        ["hidden_act", "activation"],
      ],
    },
  ],
]);

const SIZES = ["hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"];
const SERVED = { activation_bits: 8, activation_calibration: "dynamic", activation_symmetric: true };

/** @type {[string, string][]} */
const TASKS = [
  ["ForSequenceClassification", "sequence-classification"],
  ["ForTokenClassification", "token-classification"],
  ["ForQuestionAnswering", "question-answering"],
  ["ForMaskedLM", "masked-lm"],
];
/** @type {Map<unknown, string>} */
const PROBLEMS = new Map([
  ["multi_label_classification", "multi-label-classification"],
  ["regression", "regression"],
]);

/** @param {unknown} value */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * Parses the text of a config.json.
 *
 * @param {string} text
 * @returns {unknown}
 * @throws {ModelError} If it is no JSON, or too long for a config.
 */
export function parseConfig(text) {
  if (text.length > MOST_JSON_BYTES) throw new ModelError(`The config.json has ${text.length} characters, more than any config. Download it again.`);
  try {
    return JSON.parse(text);
  } catch {
    throw new ModelError("The config.json is no JSON. Download it again.");
  }
}

/**
 * A copy of a parsed config.json, with the family's own fields under BERT's names.
 *
 * @param {unknown} given
 * @returns {{config: Config, family: Family}}
 * @throws {ModelError} Unless it is of a packed model that the operator runs.
 */
export function readConfig(given) {
  if (!isObject(given)) throw new ModelError("The config.json holds no object. Give the config.json of a packed model.");
  /** @type {Config} */
  const config = { .../** @type {object} */ (given) };
  const family = FAMILIES.get(config.model_type);
  if (!family || config.state !== "packed") {
    const known = [...FAMILIES.keys()].join(", ");
    throw new ModelError(
      `The config.json is of a ${short(config.model_type)} model in state ${short(config.state)}; this runs packed models of: ${known}.`,
    );
  }
  for (const [name, own] of family.names) config[name] = config[own];
  if (family.names.length) config.layer_norm_eps = 1e-12; // DistilBERT's are fixed
  const version = config.xtc?.format_version;
  if (version !== 1 || !isObject(config.xtc.recipe)) {
    throw new ModelError(`The model has format version ${short(version)}; this reads version 1. Use a newer hf-xtc.`);
  }
  checkSizes(config, family);
  checkServed(config);
  return { config, family };
}

/**
 * @param {Config} config
 * @param {Family} family
 */
function checkSizes(config, family) {
  const sizes = family.prefix === "electra" ? [...SIZES, "embedding_size"] : SIZES;
  const missing = sizes.filter((name) => !Number.isInteger(config[name]) || config[name] <= 0 || config[name] >= 2 ** 31);
  missing.push(...Object.keys(SERVED).filter((name) => !Object.hasOwn(config.xtc.recipe, name)));
  if (family.padding && (!Number.isInteger(config[family.padding]) || config[family.padding] < 0 || config[family.padding] >= 2 ** 31))
    missing.push(family.padding);
  if (missing.length) throw new ModelError(`The config.json lacks ${missing.sort().join(", ")}. Download it again.`);
  const heads = config.num_attention_heads;
  const epsilon = config.layer_norm_eps;
  if (config.hidden_size % heads || typeof epsilon !== "number" || !(epsilon > 0 && epsilon < 1))
    throw new ModelError(`The config.json is invalid: ${heads} heads, layer_norm_eps=${short(epsilon)}. Download it again.`);
}

/** @param {Config} config */
function checkServed(config) {
  const recipe = config.xtc.recipe;
  if (config.hidden_act !== "gelu") throw notServed(`its activation is ${short(config.hidden_act)}`);
  if (config.is_decoder) throw notServed("it is a decoder");
  const positions = config.position_embedding_type ?? "absolute";
  if (positions !== "absolute") throw notServed(`its positions are ${short(positions)}`);
  for (const [name, value] of Object.entries(SERVED))
    if (recipe[name] !== value) throw notServed(`its recipe says ${name}=${short(recipe[name])}`);
  if (!["binary", "ternary", "int4"].includes(recipe.weights)) throw notServed(`its weights are ${short(recipe.weights)}`);
}

/**
 * @param {string} why
 * @returns {ModelError}
 */
export function notServed(why) {
  return new ModelError(`The WebAssembly operator does not run this model: ${why}. Run it in Python.`);
}

/**
 * The name of the class that wrote a config.
 *
 * @param {Config} config
 * @returns {string}
 */
export function architectureOf(config) {
  const names = config.architectures;
  return Array.isArray(names) && typeof names[0] === "string" ? names[0] : "";
}

/**
 * The name of the task, as hf_xtc/runtime.py tells it.
 *
 * @param {Config} config
 * @returns {string}
 */
export function taskOf(config) {
  if (typeof config.xtc.task === "string") return config.xtc.task;
  const architecture = architectureOf(config);
  const task = TASKS.find(([ending]) => architecture.endsWith(ending))?.[1] ?? "sentence-embedding";
  return task === "sequence-classification" ? (PROBLEMS.get(config.problem_type) ?? task) : task;
}
