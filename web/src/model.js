/** Packed models in JavaScript: reads config.json and model.safetensors as they are, and runs them with the native operator. */
import { ModelError } from "./errors.js";
import { QUANTIZERS, architectureOf, notServed, parseConfig, readConfig, taskOf } from "./families.js";
import { BYTES, NIBBLES, Operator, PAIRS, hasRelaxedSimd, pack } from "./operator.js";
import { copyFloats, readTensors, short } from "./safetensors.js";

export { ModelError, hasRelaxedSimd, parseConfig };

/** @typedef {import("./families.js").Config} Config */
/** @typedef {import("./families.js").Family} Family */
/** @typedef {import("./safetensors.js").Tensor} Tensor */

/**
 * What a model computes of a batch.
 *
 * @typedef {object} Outputs
 * @property {Int32Array} lengths Tokens of each sequence.
 * @property {Float32Array} hidden (tokens, hiddenSize): the last hidden states, of one sequence after another.
 * @property {Float32Array} [pooled] (sequences, hiddenSize), of a sequence classifier: what its last linear reads.
 * @property {Float32Array} [logits] (sequences, numLabels), or (tokens, numLabels) of a head on tokens.
 */

// Endings of the names of classes with a linear on the hidden states of each token, and its path in the file.
/** @type {[string, string][]} */
const TOKEN_HEADS = [
  ["ForTokenClassification", "classifier"],
  ["ForQuestionAnswering", "qa_outputs"],
];
const LAYOUTS = { binary: NIBBLES, ternary: PAIRS, int4: BYTES };
const HEAD_ACTIVATIONS = ["tanh", "gelu", "relu"]; // in the order of csrc/kernels.hpp
const TILE = 64; // rows to which a weight is padded
const MOST_COLUMNS = 2 ** 17; // sums of products with 8-bit activations fit 32 bits up to here
const BUCKETS = 32; // of distances of two tokens: MPNet's, whatever its config says
const INDICES = ["token", "position", "token type"];

/** The tensors of a file under a config, checked where they are used, and copied into the operator's memory. */
class Reader {
  /**
   * @param {Config} config
   * @param {Family} family
   * @param {Map<string, Tensor>} tensors
   * @param {Operator} operator
   */
  constructor(config, family, tensors, operator) {
    this.config = config;
    this.family = family;
    this.tensors = tensors;
    this.operator = operator;
    // The file of a bare encoder names its tensors without the prefix that a head's file gives them.
    this.prefix = [...tensors.keys()].some((name) => name.startsWith(`${family.prefix}.`)) ? `${family.prefix}.` : "";
  }

  /**
   * The tensor of a name, of the given shape.
   *
   * @param {string} name
   * @param {number[]} [shape]
   */
  tensor(name, shape) {
    const tensor = this.tensors.get(name);
    if (!tensor || (shape && `${tensor.shape}` !== `${shape}`)) {
      const what = shape ? `${name} [${shape.join(", ")}]` : name;
      throw new ModelError(`The file holds no tensor ${what}; config.json and weights do not belong together.`);
    }
    return tensor;
  }

  /** @param {string} path */
  isPacked(path) {
    return this.tensors.has(`${path}.weight_packed`);
  }

  /** @param {string} path */
  place(path) {
    return path.startsWith(this.prefix) ? path.slice(this.prefix.length) : path;
  }

  /**
   * The recipe's codes for a weight.
   *
   * @param {string} path
   */
  codes(path) {
    const place = this.place(path);
    let field = place.startsWith("embeddings.") ? "position_weights" : "weights";
    if (place === "embeddings.word_embeddings") field = "embedding_weights";
    const name = this.config.xtc.recipe[field];
    const codes = QUANTIZERS.get(name);
    if (!codes) throw new ModelError(`${path} is packed, but the recipe says ${field}=${short(name)}; known: ${[...QUANTIZERS.keys()].join(", ")}.`);
    return codes;
  }

  /**
   * The number of columns of a weight, which its packed rows, padded to whole bytes, leave open.
   *
   * @param {string} path
   * @returns {number}
   */
  columns(path) {
    const place = this.place(path);
    const { config, family } = this;
    if (place.startsWith("embeddings")) return config[family.prefix === "electra" ? "embedding_size" : "hidden_size"];
    const isOutput = place.startsWith(`${family.layer}.`) && place.slice(family.layer.length + 1).replace(/^\d+\./, "") === family.linears[5];
    return config[isOutput ? "intermediate_size" : "hidden_size"];
  }

  /**
   * Bytes and scales of a quantized weight.
   *
   * @param {string} path
   * @returns {{packed: Tensor, scale: Tensor}}
   */
  packed(path) {
    const columns = this.columns(path);
    const packed = this.tensor(`${path}.weight_packed`);
    const scale = this.tensor(`${path}.weight_scale`);
    const { levels, perByte } = this.codes(path);
    const [rows, width] = packed.shape;
    const fits =
      packed.shape.length === 2 && scale.shape.length === 2 && packed.dtype === "U8" && width === Math.ceil(columns / perByte) &&
      rows > 0 && rows < 2 ** 31 && scale.size > 0 && (scale.shape[0] === 1 || scale.shape[0] === rows) && columns % scale.shape[1] === 0;
    if (!fits) throw new ModelError(`${path} holds bytes [${packed.shape}] and scales [${scale.shape}] for ${columns} columns.`);
    if (scale.shape[1] !== 1) throw notServed("its scales are per group");
    if (scale.dtype === "U8") throw new ModelError(`${path} has scales that are no floats. Download the file again.`);
    if ((levels === 3 && packed.bytes.some((byte) => byte >= 243)) || isNegative(scale))
      throw new ModelError(`${path} holds invalid bytes or scales. Download the file again.`);
    return { packed, scale };
  }

  /**
   * The address of a tensor in float32, of the given shape.
   *
   * @param {string} name
   * @param {number[]} shape
   */
  floats(name, shape) {
    const tensor = this.tensor(name, shape);
    const address = this.operator.allocate(4 * tensor.size);
    copyFloats(float(name, tensor), this.operator.floats(address, tensor.size));
    return address;
  }

  /**
   * The struct of quantized linears of `rows` output features each, as one weight.
   *
   * @param {string[]} paths
   * @param {number} rows
   * @returns {Uint8Array}
   */
  weight(paths, rows) {
    const { exports } = this.operator;
    const columns = this.columns(paths[0]);
    const { levels } = this.codes(paths[0]);
    const layout = LAYOUTS[/** @type {keyof LAYOUTS} */ (this.config.xtc.recipe.weights)];
    const parts = paths.map((path) => {
      const { packed, scale } = this.packed(path);
      if (packed.shape[0] !== rows) throw new ModelError(`${path} holds ${packed.shape[0]} rows, not ${rows}.`);
      const bias = this.tensor(`${path}.bias`, [rows]);
      return { path, packed, scale, bias };
    });
    if (columns >= MOST_COLUMNS) throw notServed(`${paths[0]} has ${columns} columns`);
    const all = rows * paths.length;
    const padded = Math.ceil(all / TILE) * TILE;
    const bytes = Number(exports.xtc_layout_bytes(layout, BigInt(all), BigInt(columns)));
    const codes = this.zeros(bytes);
    const scales = this.zeros(4 * padded);
    const biases = this.zeros(4 * padded);
    parts.forEach(({ path, packed, scale, bias }, i) => {
      const source = this.operator.put(packed.bytes);
      exports.xtc_lay_out(layout, levels, BigInt(i * rows), BigInt(rows), BigInt(columns), source, codes);
      this.operator.release(source);
      const own = this.operator.floats(scales + 4 * i * rows, rows);
      copyFloats(scale, own.subarray(0, scale.size));
      if (scale.size === 1) own.fill(own[0]);
      copyFloats(float(`${path}.bias`, bias), this.operator.floats(biases + 4 * i * rows, rows));
    });
    return pack([["i32", layout], ["i32", levels], ["i64", all], ["i64", columns], ["pointer", codes], ["pointer", scales], ["pointer", biases]]);
  }

  /** @param {number} bytes */
  zeros(bytes) {
    const address = this.operator.allocate(bytes);
    this.operator.bytes(address, bytes).fill(0);
    return address;
  }

  /**
   * The struct of a linear in float32.
   *
   * @param {string} path
   * @param {number} rows
   * @returns {Uint8Array}
   */
  dense(path, rows) {
    const weight = this.floats(`${path}.weight`, [rows, this.columns(path)]);
    return pack([["i64", rows], ["pointer", weight], ["pointer", this.floats(`${path}.bias`, [rows])]]);
  }

  /**
   * Fields of a linear that may be packed or in float: the addresses of its two structs, of which one is null.
   *
   * @param {string} path
   * @param {number} rows
   * @returns {import("./operator.js").Field[]}
   */
  linear(path, rows) {
    if (this.isPacked(path)) return [["pointer", this.operator.put(this.weight([path], rows))], ["pointer", 0]];
    return [["pointer", 0], ["pointer", this.operator.put(this.dense(path, rows))]];
  }

  /**
   * The struct of an embedding table, in the file's layout, and its number of rows.
   *
   * @param {string} path
   * @returns {{rows: number, struct: Uint8Array}}
   */
  table(path) {
    if (!this.isPacked(path)) {
      const rows = this.tensor(`${path}.weight`).shape[0] ?? 0;
      const values = this.floats(`${path}.weight`, [rows, this.columns(path)]);
      return { rows, struct: pack([["i64", 0], ["i64", rows], ["pointer", values], ["pointer", 0]]) };
    }
    const { packed, scale } = this.packed(path);
    const rows = packed.shape[0];
    if (scale.shape[0] !== rows) throw new ModelError(`${path} holds scales [${scale.shape}] for ${rows} rows.`);
    const scales = this.floats(`${path}.weight_scale`, scale.shape);
    const values = this.operator.put(packed.bytes);
    return { rows, struct: pack([["i64", this.codes(path).levels], ["i64", rows], ["pointer", values], ["pointer", scales]]) };
  }

  /**
   * Addresses of a LayerNorm's gamma and beta.
   *
   * @param {string} path
   * @param {number} width
   * @returns {import("./operator.js").Field[]}
   */
  norm(path, width) {
    return [["pointer", this.floats(`${path}.weight`, [width])], ["pointer", this.floats(`${path}.bias`, [width])]];
  }

  /**
   * The struct of one encoder layer.
   *
   * @param {number} number
   * @returns {Uint8Array}
   */
  layer(number) {
    const { family, config } = this;
    const [query, key, value, mix, into, out] = family.linears.map((name) => `${this.prefix}${family.layer}.${number}.${name}`);
    const hidden = config.hidden_size;
    return pack([
      ["struct", this.weight([query, key, value], hidden)],
      ["struct", this.weight([mix], hidden)],
      ["struct", this.weight([into], config.intermediate_size)],
      ["struct", this.weight([out], hidden)],
      ...family.norms.flatMap((name) => this.norm(`${this.prefix}${family.layer}.${number}.${name}`, hidden)),
    ]);
  }

  /**
   * The biases of distances, (buckets, heads) in float32; null where there are none.
   *
   * @returns {Float32Array | null}
   */
  distanceBiases() {
    if (!this.family.biased) return null;
    const name = `${this.prefix}encoder.relative_attention_bias.weight`;
    const tensor = this.tensor(name);
    if (tensor.shape.length !== 2 || tensor.shape[0] < BUCKETS || tensor.shape[1] !== this.config.num_attention_heads)
      throw new ModelError(`The biases of distances have shape [${tensor.shape}]; config and weights differ.`);
    const values = new Float32Array(tensor.size);
    copyFloats(float(name, tensor), values);
    return values;
  }
}

/**
 * @param {string} name
 * @param {Tensor} tensor
 */
function float(name, tensor) {
  if (tensor.dtype === "U8") throw new ModelError(`${name} holds no floats. Download the file again.`);
  return tensor;
}

/**
 * Whether a tensor of floats has a number below 0.
 *
 * @param {Tensor} tensor
 */
function isNegative({ dtype, bytes }) {
  const step = dtype === "F32" ? 4 : 2;
  for (let i = step - 1; i < bytes.length; i += step) {
    if (bytes[i] < 0x80) continue;
    if (bytes[i] > 0x80 || bytes.subarray(i - step + 1, i).some((byte) => byte !== 0)) return true; // -0 is not below 0
  }
  return false;
}

/**
 * The bucket of a distance from a query to a key. Buckets of one distance each, then such that grow by a factor of
 * sqrt(2) (T5, https://arxiv.org/abs/1910.10683), half of all for each sign.
 *
 * @param {number} distance
 */
export function bucketOf(distance) {
  const half = BUCKETS / 2;
  const exact = half / 2;
  const size = Math.abs(distance);
  let bucket = Math.min(size, exact);
  while (size >= exact && bucket < half - 1 && size ** 2 >= exact ** 2 * 2 ** (bucket - exact + 1)) ++bucket;
  return bucket + (distance > 0 ? half : 0);
}

/** A packed model in the memory of a WebAssembly instance of its own. */
export class PackedModel {
  /**
   * Reads a model.
   *
   * @param {unknown} config The parsed config.json, as of `parseConfig`.
   * @param {Uint8Array} bytes Of model.safetensors. They are not needed any more afterwards.
   * @param {WebAssembly.Module | BufferSource} wasm The operator.
   * @returns {Promise<PackedModel>}
   * @throws {ModelError} If they are not those of a packed model that the operator runs.
   */
  static async create(config, bytes, wasm) {
    const read = readConfig(config);
    const tensors = readTensors(bytes);
    return new PackedModel(new Reader(read.config, read.family, tensors, await Operator.create(wasm)));
  }

  /** @type {Operator | null} */
  #operator;
  /** @type {import("./operator.js").Field[][]} Before and after the distances. */
  #encoder;
  /** @type {import("./operator.js").Field[] | null} Pooler and classifier. */
  #head = null;
  /** @type {number} Address of the linear on tokens, or 0. */
  #tokenHead = 0;
  /** @type {Float32Array | null} */
  #biases;
  /** @type {{address: number, reach: number}} */
  #distances = { address: 0, reach: 0 };
  #tables;
  /** @type {number | null} */
  #padding;

  /** @param {Reader} reader */
  constructor(reader) {
    const { config, family, operator, prefix } = reader;
    const base = `${prefix}embeddings`;
    this.#operator = operator;
    /** @type {Config} */
    this.config = config;
    this.task = taskOf(config);
    /** @type {number} */
    this.hiddenSize = config.hidden_size;
    this.#padding = family.padding === null ? null : family.padding ? config[family.padding] : 1;
    const tables = family.tables.map((name) => reader.table(`${base}.${name}`));
    this.#tables = tables.map((table) => table.rows);
    /** Whether it tells token types apart. */
    this.hasTypes = tables.length > 2;
    /** The tokens that a sequence can have. */
    this.maxLength = tables[1].rows - (this.#padding === null ? 0 : this.#padding + 1);
    if (this.maxLength < 1) throw new ModelError(`The model has ${tables[1].rows} positions, which leave none for a token. Download it again.`);
    const width = reader.columns(`${base}.word_embeddings`);
    const norm = reader.norm(`${base}.LayerNorm`, width);
    /** @type {import("./operator.js").Field[]} */
    const projection = width === this.hiddenSize ? [["pointer", 0], ["pointer", 0]] : reader.linear(`${base}_project`, this.hiddenSize);
    this.#biases = reader.distanceBiases();
    const layers = [];
    for (let i = 0; i < config.num_hidden_layers; ++i) layers.push(reader.layer(i));
    const whole = new Uint8Array(layers.length * layers[0].length);
    layers.forEach((layer, i) => whole.set(layer, i * layer.length));
    const none = pack([["i64", 0], ["i64", 0], ["pointer", 0], ["pointer", 0]]);
    this.#encoder = [
      [
        ...[this.hiddenSize, config.num_attention_heads, config.intermediate_size, layers.length].map(long),
        ["f32", config.layer_norm_eps],
        ["f32", config.layer_norm_eps],
        ["i64", width],
        ...[...tables.map((table) => table.struct), none].slice(0, 3).map(struct),
        ...norm,
        ...projection,
      ],
      [["pointer", operator.put(whole)]],
    ];
    /** Outputs of the head on texts or on tokens; 0 without one. */
    this.numLabels = this.#readHead(reader);
  }

  /**
   * @param {Reader} reader
   * @returns {number}
   */
  #readHead(reader) {
    const architecture = architectureOf(this.config);
    const onTokens = TOKEN_HEADS.find(([ending]) => architecture.endsWith(ending))?.[1];
    if (onTokens) {
      const labels = reader.tensor(`${onTokens}.bias`).shape[0] ?? 0;
      this.#tokenHead = reader.operator.put(reader.dense(onTokens, labels));
      return labels;
    }
    if (!architecture.endsWith("ForSequenceClassification")) return 0;
    const [dense, activation, output] = reader.family.head;
    const path = dense.startsWith("pooler") ? `${reader.prefix}${dense}` : dense;
    const labels = reader.tensor(`${output}.weight`).shape[0] ?? 0;
    const classifier = reader.operator.put(reader.dense(output, labels));
    this.#head = [...reader.linear(path, this.hiddenSize), ["pointer", classifier], long(HEAD_ACTIVATIONS.indexOf(activation))];
    return labels;
  }

  /**
   * Computes a batch of sequences, whose lengths may differ.
   *
   * @param {ArrayLike<number>[]} ids Token ids of each sequence, at least one.
   * @param {ArrayLike<number>[] | null} [types] Token types of each sequence; all 0 by default.
   * @returns {Outputs}
   * @throws {ModelError} If an id is none of the model's, or a sequence is empty or longer than `maxLength`.
   */
  run(ids, types = null) {
    const operator = this.#operator;
    if (!operator) throw new ModelError("The model was freed. Create another.");
    const lengths = this.#lengths(ids, types);
    const tokens = lengths.reduce((sum, length) => sum + length, 0);
    const words = ids.flatMap((row) => Array.from(row));
    if (this.#tables.length < 3 && types?.some((row) => Array.from(row).some((type) => type !== 0)))
      throw new ModelError("The model knows no token types, but some are not 0. Leave them out.");
    const indices = [words, ids.flatMap((row) => this.#positions(row))];
    if (this.#tables.length > 2) indices.push(types ? types.flatMap((row) => Array.from(row)) : new Array(tokens).fill(0));
    indices.forEach((rows, i) => checkRows(rows, this.#tables[i], INDICES[i]));
    /** @type {number[]} */
    const held = [];
    try {
      return this.#compute(operator, lengths, tokens, indices, held);
    } finally {
      for (const address of held) operator.release(address);
    }
  }

  /** Gives the memory back; the model cannot run any more. */
  free() {
    this.#operator = null;
    this.#biases = null;
  }

  /**
   * @param {ArrayLike<number>[]} ids
   * @param {ArrayLike<number>[] | null} types
   */
  #lengths(ids, types) {
    if (!Array.isArray(ids) || !ids.length) throw new ModelError("Give the token ids of at least one sequence.");
    const lengths = Int32Array.from(ids, (row) => row?.length ?? 0);
    const wrong = lengths.find((length) => length < 1 || length > this.maxLength);
    if (wrong !== undefined) throw new ModelError(`A sequence has ${wrong} tokens; the model takes 1 to ${this.maxLength}. Truncate it.`);
    if (types && (types.length !== ids.length || types.some((row, i) => row?.length !== lengths[i])))
      throw new ModelError("Token types must be as many as the token ids of each sequence.");
    return lengths;
  }

  /** @param {ArrayLike<number>} row */
  #positions(row) {
    const padding = this.#padding;
    if (padding === null) return Array.from(row, (_, i) => i);
    let last = padding;
    return Array.from(row, (id) => (id === padding ? padding : ++last));
  }

  /**
   * @param {Operator} operator
   * @param {Int32Array} lengths
   * @param {number} tokens
   * @param {number[][]} indices
   * @param {number[]} held Gets what is to be released.
   * @returns {Outputs}
   */
  #compute(operator, lengths, tokens, indices, held) {
    /** @param {number} address */
    const hold = (address) => {
      held.push(address);
      return address;
    };
    const sequences = lengths.length;
    const offsets = [0];
    for (const length of lengths) offsets.push(offsets[offsets.length - 1] + length);
    this.#reachTo(operator, lengths.reduce((most, length) => Math.max(most, length), 0));
    const addresses = [offsets, ...indices].map((values) => hold(operator.putLongs(values)));
    const batch = hold(operator.put(pack([long(sequences), long(tokens), ...addresses.map(pointer), ...(indices.length < 3 ? [pointer(0)] : [])])));
    const [before, after] = this.#encoder;
    const encoder = hold(operator.put(pack([...before, pointer(this.#distances.address), long(this.#distances.reach), ...after])));
    const head = hold(operator.put(pack(this.#head ?? [pointer(0), pointer(0), pointer(0), long(0)])));
    const floats = { hidden: tokens * this.hiddenSize, pooled: 0, logits: tokens * this.numLabels };
    if (this.#head) Object.assign(floats, { pooled: sequences * this.hiddenSize, logits: sequences * this.numLabels });
    const [hidden, pooled, logits] = Object.values(floats).map((size) => hold(operator.allocate(4 * size)));
    const outputs = hold(operator.put(pack([pointer(hidden), pointer(pooled), pointer(logits)])));
    const threads = hold(operator.put(pack([pointer(0), long(1)])));
    const status = Number(operator.exports.xtc_encoder(0, encoder, batch, head, outputs, threads));
    if (status > 0) throw new ModelError(`There is no memory for ${(status / 2 ** 20).toFixed()} MiB more. Run fewer or shorter texts at once.`);
    if (status < 0) throw new ModelError(`The operator refused the batch with status ${status}.`);
    if (this.#tokenHead) operator.exports.xtc_dense(this.#tokenHead, hidden, BigInt(tokens), BigInt(this.hiddenSize), logits);
    /** @type {Outputs} */
    const found = { lengths, hidden: operator.floats(hidden, floats.hidden).slice() };
    if (this.#head) found.pooled = operator.floats(pooled, floats.pooled).slice();
    if (this.numLabels) found.logits = operator.floats(logits, floats.logits).slice();
    return found;
  }

  /**
   * Makes the table of distances reach sequences of so many tokens, where the family has one.
   *
   * @param {Operator} operator
   * @param {number} tokens
   */
  #reachTo(operator, tokens) {
    if (!this.#biases || tokens <= this.#distances.reach) return;
    const heads = this.config.num_attention_heads;
    const width = 2 * tokens - 1;
    const address = operator.allocate(4 * heads * width);
    const table = operator.floats(address, heads * width);
    for (let i = 0; i < width; ++i) {
      const bucket = bucketOf(i - tokens + 1);
      for (let head = 0; head < heads; ++head) table[head * width + i] = this.#biases[bucket * heads + head];
    }
    if (this.#distances.address) operator.release(this.#distances.address);
    this.#distances = { address, reach: tokens };
  }
}

/**
 * @param {number} value
 * @returns {import("./operator.js").Field}
 */
const long = (value) => ["i64", value];

/**
 * @param {number} value
 * @returns {import("./operator.js").Field}
 */
const pointer = (value) => ["pointer", value];

/**
 * @param {Uint8Array} value
 * @returns {import("./operator.js").Field}
 */
const struct = (value) => ["struct", value];

/**
 * @param {number[]} indices
 * @param {number} rows
 * @param {string} name
 */
function checkRows(indices, rows, name) {
  const wrong = indices.find((index) => !(Number.isInteger(index) && index >= 0 && index < rows));
  if (wrong !== undefined) throw new ModelError(`Index out of range: ${name} id ${wrong}, but the embedding has ${rows} rows.`);
}
