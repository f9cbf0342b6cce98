/** The settings of a sentence embedder, from the files by which sentence-transformers opens a folder. */
import { ModelError } from "./errors.js";

/** @typedef {import("./files.js").Source} Source */
/**
 * `prompt` stands before each text, of a pair before its first.
 * @typedef {{pooling: "mean" | "cls", normalize: boolean, maxLength: number | null, prompt: string}} SentenceSettings
 */

const POOLINGS = new Map(
  /** @type {const} */ ([
    ["pooling_mode_mean_tokens", "mean"],
    ["pooling_mode_cls_token", "cls"],
    ["mean", "mean"],
    ["cls", "cls"],
  ]),
);

/**
 * @param {Source} source
 * @returns {Promise<SentenceSettings>} Of a folder without a Pooling: the mean, not normalized.
 */
export async function readSentenceSettings(source) {
  /** @type {SentenceSettings} */
  const plain = { pooling: "mean", normalize: false, maxLength: null, prompt: "" };
  const modules = await source.json("modules.json", true);
  if (modules === null) return plain;
  if (!Array.isArray(modules) || modules.some((one) => typeof one?.type !== "string" || typeof one.path !== "string")) {
    throw new ModelError("modules.json is no list of modules. Download or write it again.");
  }
  const paths = new Map(modules.map((one) => [one.type.split(".").at(-1), one.path]));
  const path = paths.get("Pooling");
  if (path === undefined) return plain; // a CrossEncoder, for example
  const known = ["Transformer", "Pooling", "Normalize"];
  if ([...paths.keys()].some((name) => !known.includes(name)) || /[/\\]|^\.*$/.test(path)) {
    throw new ModelError(`modules.json has modules ${[...paths.keys()]}, not a Transformer, a Pooling and Normalize.`);
  }
  const options = (await source.json(`${path}/config.json`)) ?? {};
  const chosen = options.pooling_mode
    ? [options.pooling_mode].flat()
    : Object.keys(options).filter((name) => name.startsWith("pooling_mode_") && options[name] === true);
  const pooling = POOLINGS.get(chosen[0]);
  if (chosen.length !== 1 || !pooling) {
    throw new ModelError(`${path} pools by [${chosen}]; use one of pooling_mode_mean_tokens, pooling_mode_cls_token.`);
  }
  const transformer = (await source.json("sentence_bert_config.json", true)) ?? {};
  const longest = transformer.max_seq_length;
  return {
    pooling,
    normalize: paths.has("Normalize"),
    maxLength: Number.isInteger(longest) && longest > 0 ? longest : null,
    prompt: defaultPrompt((await source.json("config_sentence_transformers.json", true)) ?? {}),
  };
}

/** @param {any} options @returns {string} */
function defaultPrompt({ prompts, default_prompt_name: name }) {
  if (name == null) return "";
  const prompt = new Map(Object.entries(prompts ?? {})).get(name);
  if (typeof prompt !== "string") {
    throw new ModelError(
      `config_sentence_transformers.json names ${JSON.stringify(name)} as its default prompt, which is none of its ` +
        "prompts. Correct it.",
    );
  }
  return prompt;
}
