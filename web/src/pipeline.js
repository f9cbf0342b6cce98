/** A packed model with its tokenizer: classifies, embeds, tags and answers, in the thread that it was loaded in. */
import { ModelError } from "./errors.js";
import { Source } from "./files.js";
import { PackedModel, hasRelaxedSimd } from "./model.js";
import { answer, best, entities, scores } from "./outputs.js";
import { readSentenceSettings } from "./sentences.js";
import { Tokenizer } from "./tokenizer.js";

/** @typedef {import("./tokenizer.js").Text} Text */
/** @typedef {import("./tokenizer.js").Encoding} Encoding */
/** @typedef {import("./outputs.js").Label} Label */
/** @typedef {import("./outputs.js").Entity} Entity */
/** @typedef {import("./outputs.js").Answer} Answer */
/** @typedef {import("./files.js").Progress} Progress */
/** @typedef {import("./sentences.js").SentenceSettings} SentenceSettings */

/**
 * @typedef {object} LoadOptions
 * @property {(progress: Progress) => void} [onProgress] Told how many bytes came.
 * @property {boolean} [worker] Whether the model runs in a worker: by default in pages, not in Node and in workers.
 * @property {boolean} [cache] Whether the Cache API keeps the files, where there is one: by default.
 * @property {number | null} [maxLength] Tokens to which texts are truncated; by default the model's limit.
 */

/**
 * What is known of a loaded model.
 * @typedef {object} About
 * @property {string} task Its name, as the configuration or the model's class tells: "sequence-classification",
 *   "multi-label-classification", "regression", "reranking", "token-classification", "question-answering",
 *   "sentence-embedding".
 * @property {string[]} labels The names of the classes, in the order of the logits.
 * @property {number} maxLength Tokens to which texts are truncated.
 * @property {number} bytes Bytes of its files, the runtime's included; compressed, where the browser tells.
 */

const ON_TOKENS = ["ForTokenClassification", "ForQuestionAnswering"];

/** A loaded model. */
export class Pipeline {
  /** @param {string | URL} folder @param {LoadOptions} options @returns {Promise<Pipeline>} */
  static async load(folder, options) {
    const source = new Source(folder, options);
    const config = source.json("config.json");
    const embeds = config.then((config) => /Model$/.test(config?.architectures?.[0] ?? "Model"));
    const parts = await Promise.allSettled([
      config,
      source.read("model.safetensors"),
      source.json("tokenizer.json"),
      source.json("tokenizer_config.json", true),
      source.read(new URL(hasRelaxedSimd() ? "./xtc-relaxed.wasm" : "./xtc.wasm", import.meta.url)),
      embeds.then((embeds) => (embeds ? readSentenceSettings(source) : null)),
    ]);
    const values = parts.map((part) => {
      if (part.status === "rejected") throw part.reason;
      return /** @type {any} */ (part.value);
    });
    const model = await PackedModel.create(values[0], values[1], values[4]);
    /** @type {SentenceSettings} */
    const sentences = values[5] ?? { pooling: "mean", normalize: false, maxLength: null, prompt: "" };
    const longest = Math.min(model.maxLength, sentences.maxLength ?? Infinity);
    const tokenizer = await Tokenizer.create(values[2], values[3] ?? {}, longest);
    if (options.maxLength != null) tokenizer.limit(options.maxLength);
    return new Pipeline(values[0], model, tokenizer, sentences, source.bytes);
  }

  /**
   * @param {any} config
   * @param {PackedModel} model
   * @param {Tokenizer} tokenizer
   * @param {SentenceSettings} sentences
   * @param {number} bytes
   */
  constructor(config, model, tokenizer, sentences, bytes) {
    this.config = config;
    this.model = model;
    this.tokenizer = tokenizer;
    this.sentences = sentences;
    /** @type {string} */
    this.task = model.task;
    this.maxLength = tokenizer.longest;
    this.bytes = bytes;
    const name = String(config.architectures?.[0] ?? "");
    this.onTokens = ON_TOKENS.some((ending) => name.endsWith(ending));
    this.classifies = name.endsWith("ForSequenceClassification");
    const count = this.onTokens || this.classifies ? model.numLabels : 0;
    this.labels = Array.from({ length: count }, (_, i) => String(config.id2label?.[i] ?? `LABEL_${i}`));
  }

  /**
   * Classifies texts, as transformers' text-classification pipeline does.
   * @param {Text[]} texts Texts, or pairs of them.
   * @param {{topK?: number | null, batchSize?: number}} [options] Labels of each text, the best first; null for all.
   * @returns {Promise<Label[][]>}
   */
  async classify(texts, { topK = 1, batchSize } = {}) {
    if (topK !== null && !(Number.isInteger(topK) && topK > 0)) {
      throw new ModelError(`topK=${topK} must be at least 1, or null for all labels.`);
    }
    const logits = await this.logits(texts, { batchSize });
    return logits.map((row) => best(this.labels, scores(this.config, this.task, row), topK));
  }

  /**
   * @param {Text[]} texts
   * @param {{batchSize?: number}} [options]
   * @returns {Promise<Float32Array[]>} The logits of each text.
   */
  async logits(texts, { batchSize } = {}) {
    if (!this.classifies) throw new ModelError(`The model is no classifier of texts: its task is ${this.task}.`);
    const width = this.labels.length;
    return this.#run(this.#encode(texts), batchSize, (outputs, i) =>
      outputs.logits.slice(i * width, (i + 1) * width),
    );
  }

  /**
   * @param {Text[]} texts
   * @param {{pooling?: "mean" | "cls", normalize?: boolean, prompt?: string, batchSize?: number}} [options] By default as
   *   modules.json says; else the mean of the hidden states, not normalized. `prompt` stands before each text, of a
   *   pair before its first; by default the one that config_sentence_transformers.json names, else nothing.
   * @returns {Promise<Float32Array[]>} The vector of each text.
   */
  async embed(texts, options = {}) {
    const { sentences } = this;
    const { pooling = sentences.pooling, normalize = sentences.normalize, prompt = sentences.prompt } = options;
    if (pooling !== "mean" && pooling !== "cls") {
      throw new ModelError(`pooling=${pooling} does not exist here. Use "mean" or "cls".`);
    }
    if (typeof prompt !== "string") throw new ModelError(`prompt=${prompt} is no text. Give a string.`);
    checkTexts(texts);
    const encodings = texts.map((text) =>
      this.tokenizer.encode(typeof text === "string" ? prompt + text : [prompt + text[0], text[1]]),
    );
    const width = this.model.hiddenSize;
    return this.#run(encodings, options.batchSize, (outputs, i, first) => {
      const count = pooling === "cls" ? 1 : outputs.lengths[i];
      const vector = new Float32Array(width);
      for (let row = first; row < first + count; row++) {
        for (let j = 0; j < width; j++) vector[j] += outputs.hidden[row * width + j];
      }
      const length = normalize ? Math.max(Math.hypot(...vector) / count, 1e-12) : 1;
      return vector.map((value) => value / count / length);
    });
  }

  /**
   * Entities, as transformers' token-classification pipeline gives them with aggregation_strategy="simple".
   * @param {string[]} texts
   * @param {{batchSize?: number}} [options]
   * @returns {Promise<Entity[][]>} `text.slice(start, end)` is what was marked.
   */
  async tag(texts, { batchSize } = {}) {
    if (this.task !== "token-classification") throw new ModelError(`The model is no tagger: its task is ${this.task}.`);
    const encodings = this.#encode(texts);
    encodings.forEach(requirePlaces);
    const logits = await this.#tokenLogits(encodings, batchSize);
    const { engine } = this.tokenizer;
    return texts.map((text, i) => entities(text, encodings[i], logits[i], this.labels, engine));
  }

  /**
   * Answers to questions, each from its own context, which may be long: it is read in windows.
   * @param {string[]} questions
   * @param {string[]} contexts
   * @param {{unanswerable?: boolean, batchSize?: number}} [options] `unanswerable`: whether a context may hold no
   *   answer; by default if the model has learned from such rows.
   * @returns {Promise<Answer[]>}
   */
  async answer(questions, contexts, { unanswerable, batchSize } = {}) {
    if (this.task !== "question-answering") {
      throw new ModelError(`The model does not answer questions: its task is ${this.task}.`);
    }
    if (questions.length !== contexts.length) {
      throw new ModelError(`${questions.length} questions have ${contexts.length} contexts. Give one to each.`);
    }
    checkTexts([...questions, ...contexts]);
    const windows = questions.map((question, i) =>
      this.tokenizer.windows(question, contexts[i], Math.floor(this.tokenizer.longest / 3)),
    );
    const flat = windows.flat();
    flat.forEach(requirePlaces);
    const logits = await this.#tokenLogits(flat, batchSize);
    const none = unanswerable ?? !!this.config.xtc?.provenance?.unanswerable_rows;
    let at = 0;
    return windows.map((row, i) =>
      answer(contexts[i], row.map((encoding) => ({ encoding, logits: logits[at++] })), none),
    );
  }

  /** Gives the model's memory back; it cannot be used any more. */
  free() {
    this.model.free();
  }

  /** @returns {About} */
  about() {
    const { task, labels, maxLength, bytes } = this;
    return { task, labels, maxLength, bytes };
  }

  /** @param {Text[]} texts @returns {Encoding[]} */
  #encode(texts) {
    checkTexts(texts);
    return texts.map((text) => this.tokenizer.encode(text));
  }

  /** @param {Encoding[]} encodings @param {number | undefined} batchSize @returns {Promise<Float32Array[]>} */
  #tokenLogits(encodings, batchSize) {
    const width = this.labels.length;
    return this.#run(encodings, batchSize, (outputs, i, first) =>
      outputs.logits.slice(first * width, (first + outputs.lengths[i]) * width),
    );
  }

  /**
   * Runs texts in batches of like lengths.
   * @template T
   * @param {Encoding[]} encodings
   * @param {number | undefined} batchSize
   * @param {(outputs: any, i: number, first: number) => T} take What to make of the i-th sequence of a batch, whose
   *   tokens begin at row `first`.
   * @returns {Promise<T[]>} In the order of the texts.
   */
  async #run(encodings, batchSize = 32, take) {
    if (!Number.isInteger(batchSize) || batchSize < 1) {
      throw new ModelError(`batchSize=${batchSize} must be at least 1.`);
    }
    const order = encodings.map((_, i) => i).sort((a, b) => encodings[a].ids.length - encodings[b].ids.length);
    /** @type {T[]} */
    const found = new Array(encodings.length);
    for (let start = 0; start < order.length; start += batchSize) {
      const chosen = order.slice(start, start + batchSize);
      const types = this.tokenizer.hasTypes && this.model.hasTypes ? chosen.map((i) => encodings[i].types) : null;
      const outputs = this.model.run(
        chosen.map((i) => encodings[i].ids),
        types,
      );
      let first = 0;
      chosen.forEach((place, i) => {
        found[place] = take(outputs, i, first);
        first += outputs.lengths[i];
      });
    }
    return found;
  }
}

/** @param {Encoding} encoding */
function requirePlaces(encoding) {
  if (encoding.tokens.some(({ start }) => start < 0)) {
    throw new ModelError("The tokenizer does not tell where tokens stand in the text; WordPiece and byte-level BPE do.");
  }
}

/** @param {unknown} texts */
function checkTexts(texts) {
  if (!Array.isArray(texts)) throw new ModelError("Give a list of texts.");
  for (const text of texts) {
    const pair = Array.isArray(text) && text.length === 2 && text.every((part) => typeof part === "string");
    if (typeof text !== "string" && !pair) {
      throw new ModelError(`${JSON.stringify(text)} is not a text. Give a string, or a list of two for a pair.`);
    }
  }
}
