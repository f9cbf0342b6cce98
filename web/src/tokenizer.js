/**
 * Reads tokenizer.json: texts and pairs -> ids, token types and places, as transformers' fast tokenizers give them.
 *
 * BERT's WordPiece is our own, since @huggingface/tokenizers tells no places and differs on rare characters; other
 * models (byte-level BPE, Unigram) run in that library, which is loaded only for them.
 */
import { ModelError } from "./errors.js";
import { BertNormalizer, WordPiece } from "./wordpiece.js";

/** @typedef {import("./wordpiece.js").Token} Token */
/** @typedef {string | [string, string]} Text A text, or a pair of texts. */

/**
 * A text's tokens, with the special ones: `parts` is 0 for tokens of the first text, 1 for the second, -1 for special.
 * @typedef {{ids: number[], types: number[], tokens: Token[], parts: number[]}} Encoding
 */

/**
 * What splits a text into tokens. Their places are -1 where they are not known.
 * @typedef {{tokens(text: string): Token[], decode(tokens: string[]): string, prefix: string | null,
 *   unknown: string | null}} Engine
 */

/** @typedef {{part: number, type: number} | {token: Token, type: number}} Piece A piece of a template. */

/** Tokenizers of these classes give token types unless their options say what they give. */
const TYPED = ["BertTokenizer", "ElectraTokenizer"];

export class Tokenizer {
  /**
   * @param {any} file The content of tokenizer.json.
   * @param {any} options The content of tokenizer_config.json.
   * @param {number} longest The most tokens that the model takes.
   * @returns {Promise<Tokenizer>}
   */
  static async create(file, options, longest) {
    try {
      const model = file.model;
      const own = model.type === "WordPiece" && file.normalizer?.type === "BertNormalizer";
      const engine =
        own && file.pre_tokenizer?.type === "BertPreTokenizer" ? wordPiece(file) : await library(file, options);
      return new Tokenizer(file, options, longest, engine);
    } catch (error) {
      if (error instanceof ModelError) throw error;
      throw new ModelError(`tokenizer.json cannot be read (${reason(error)}). Write it with a fast tokenizer.`);
    }
  }

  /**
   * @param {any} file
   * @param {any} options
   * @param {number} longest
   * @param {Engine} engine
   */
  constructor(file, options, longest, engine) {
    this.engine = engine;
    this.single = template(file.post_processor, false);
    this.pair = template(file.post_processor, true);
    this.left = options.truncation_side === "left";
    this.hasTypes = givesTypes(options);
    const own = options.model_max_length; // transformers writes a very large number where there is none
    this.longest = Number.isInteger(own) && own > 0 ? Math.min(longest, own) : longest;
  }

  /** Limits texts to fewer tokens. @param {number} length */
  limit(length) {
    const least = this.pair.filter((piece) => "token" in piece).length + 1;
    if (!Number.isInteger(length) || length < least || length > this.longest) {
      throw new ModelError(`maxLength=${length} must lie between ${least} and ${this.longest}, the model's limit.`);
    }
    this.longest = length;
  }

  /** @param {Text} text @returns {Encoding} */
  encode(text) {
    const texts = typeof text === "string" ? [text] : text;
    const pieces = texts.length > 1 ? this.pair : this.single;
    const special = pieces.filter((piece) => "token" in piece).length;
    const parts = texts.map((part) => this.engine.tokens(part));
    const lengths = truncated(
      parts.map((part) => part.length),
      this.longest - special,
    );
    /** @type {Encoding} */
    const found = { ids: [], types: [], tokens: [], parts: [] };
    for (const piece of pieces) {
      const part = "token" in piece ? -1 : piece.part;
      const tokens = "token" in piece ? [piece.token] : cut(parts[part], lengths[part], this.left);
      for (const token of tokens) {
        found.ids.push(token.id);
        found.types.push(piece.type);
        found.tokens.push(token);
        found.parts.push(part);
      }
    }
    return found;
  }

  /**
   * A question with its context in windows, which share `stride` tokens of the context.
   * @param {string} question
   * @param {string} context
   * @param {number} stride
   * @returns {Encoding[]}
   */
  windows(question, context, stride) {
    const special = this.pair.filter((piece) => "token" in piece).length;
    const first = this.engine.tokens(question);
    const second = this.engine.tokens(context);
    const room = this.longest - special - first.length;
    if (room <= stride) {
      throw new ModelError(`The question has ${first.length} tokens, which leaves no room for a context. Shorten it.`);
    }
    /** @type {Encoding[]} */
    const found = [];
    for (let from = 0; ; from += room - stride) {
      /** @type {Encoding} */
      const window = { ids: [], types: [], tokens: [], parts: [] };
      for (const piece of this.pair) {
        const part = "token" in piece ? -1 : piece.part;
        const tokens = "token" in piece ? [piece.token] : part === 0 ? first : second.slice(from, from + room);
        for (const token of tokens) {
          window.ids.push(token.id);
          window.types.push(piece.type);
          window.tokens.push(token);
          window.parts.push(part);
        }
      }
      found.push(window);
      if (from + room >= second.length) return found;
    }
  }
}

/** @param {unknown} error @returns {string} */
export function reason(error) {
  return error instanceof Error ? error.message.replace(/\.$/, "") : String(error);
}

/** @param {Token[]} tokens @param {number} length @param {boolean} left @returns {Token[]} */
function cut(tokens, length, left) {
  if (length >= tokens.length) return tokens;
  return left ? tokens.slice(tokens.length - length) : tokens.slice(0, length);
}

/**
 * The lengths to which the texts of one input are cut, the longer one first, as the tokenizers library does.
 * @param {number[]} lengths
 * @param {number} room
 * @returns {number[]}
 */
function truncated(lengths, room) {
  if (lengths.length === 1) return [Math.min(lengths[0], room)];
  if (lengths[0] + lengths[1] <= room) return lengths;
  const short = Math.min(...lengths);
  let long = short > room ? short : Math.max(short, room - short);
  let [less, more] = [short, long];
  if (short + long > room) {
    less = room >> 1;
    more = less + (room % 2);
  }
  return lengths[0] > lengths[1] ? [more, less] : [less, more];
}

/** @param {any} options @returns {boolean} Whether a tokenizer with these options gives token types in transformers. */
function givesTypes(options) {
  const names = options.model_input_names;
  if (Array.isArray(names) && names.length) return names.includes("token_type_ids");
  const kind = options.tokenizer_class;
  return kind == null || TYPED.includes(String(kind).replace(/Fast$/, ""));
}

/**
 * What surrounds a text, or a pair of them.
 * @param {any} processor The `post_processor` of tokenizer.json.
 * @param {boolean} pair
 * @returns {Piece[]}
 */
function template(processor, pair) {
  /** @type {Piece[]} */
  const plain = pair ? [{ part: 0, type: 0 }, { part: 1, type: 1 }] : [{ part: 0, type: 0 }];
  /** @param {string} token @param {number} id @param {number} type */
  const special = (token, id, type) => ({ token: { token, id, start: 0, end: 0 }, type });
  switch (processor?.type) {
    case undefined:
    case "ByteLevel":
      return plain;
    case "Sequence": {
      const inner = processor.processors.filter((/** @type {any} */ one) => one.type !== "ByteLevel");
      if (inner.length > 1) throw new Error(`its post_processor is a sequence of ${inner.length}`);
      return template(inner[0], pair);
    }
    case "TemplateProcessing":
      return (pair ? processor.pair : processor.single).flatMap((/** @type {any} */ piece) => {
        if (piece.Sequence) return [{ part: piece.Sequence.id === "B" ? 1 : 0, type: piece.Sequence.type_id }];
        const { id, type_id } = piece.SpecialToken;
        const { ids, tokens } = processor.special_tokens[id];
        return ids.map((/** @type {number} */ one, /** @type {number} */ i) => special(tokens[i], one, type_id));
      });
    case "BertProcessing":
    case "RobertaProcessing": {
      const roberta = processor.type === "RobertaProcessing";
      const [cls, sep] = [processor.cls, processor.sep];
      const type = roberta ? 0 : 1;
      const first = [special(cls[0], cls[1], 0), { part: 0, type: 0 }, special(sep[0], sep[1], 0)];
      if (!pair) return first;
      const between = roberta ? [special(sep[0], sep[1], 0)] : [];
      return [...first, ...between, { part: 1, type }, special(sep[0], sep[1], type)];
    }
    default:
      throw new Error(`its post_processor is ${processor.type}`);
  }
}

/** @typedef {{content: string, id: number, lstrip: boolean, rstrip: boolean, single_word: boolean}} Added */

/** @param {string} text @returns {string} */
const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/**
 * Finds added tokens in a text: the leftmost first, of several there the longest.
 * @param {Map<string, Added>} tokens By what stands for them in the text.
 * @returns {(text: string) => {token: Added, start: number, end: number}[]}
 */
function finder(tokens) {
  const names = [...tokens.keys()].filter((name) => name).sort((a, b) => b.length - a.length);
  if (!names.length) return () => [];
  const pattern = new RegExp(names.map(escaped).join("|"), "gu");
  return (text) => {
    const found = [];
    let after = 0;
    for (const match of text.matchAll(pattern)) {
      const token = /** @type {Added} */ (tokens.get(match[0]));
      let start = match.index;
      let end = start + match[0].length;
      if (token.single_word && (/[\p{Alphabetic}\p{M}\p{N}_]$/u.test(text.slice(0, start)) ||
          /^[\p{Alphabetic}\p{M}\p{N}_]/u.test(text.slice(end)))) continue;
      if (token.lstrip) start = Math.max(after, text.slice(0, start).search(/\p{White_Space}*$/u));
      if (token.rstrip) end += /** @type {RegExpMatchArray} */ (text.slice(end).match(/^\p{White_Space}*/u))[0].length;
      found.push({ token, start, end });
      after = end;
    }
    return found;
  };
}

/** @param {any} file The content of tokenizer.json. @returns {Engine} */
function wordPiece(file) {
  const normalizer = new BertNormalizer(file.normalizer);
  const model = new WordPiece(file.model);
  /** @type {Map<string, Added>} */
  const raw = new Map();
  /** @type {Map<string, Added>} */
  const normalized = new Map();
  for (const token of file.added_tokens ?? []) {
    if (token.normalized) normalized.set(normalizer.normalize(token.content).chars.join(""), token);
    else raw.set(token.content, token);
  }
  const [findRaw, findNormalized] = [finder(raw), finder(normalized)];

  /** @param {string} text @param {number} from @param {number} to @returns {Token[]} */
  function between(text, from, to) {
    const part = normalizer.normalize(text, from, to);
    if (!normalized.size) return model.tokens(part);
    /** @type {Token[]} */
    const found = [];
    /** @type {number[]} */
    const places = []; // in the joined text -> in the characters
    part.chars.forEach((char, i) => places.push(...new Array(char.length).fill(i)));
    places.push(part.chars.length);
    let at = 0;
    /** @param {number} first @param {number} last */
    const slice = (first, last) => ({
      chars: part.chars.slice(first, last),
      starts: part.starts.slice(first, last),
      ends: part.ends.slice(first, last),
    });
    for (const { token, start, end } of findNormalized(part.chars.join(""))) {
      found.push(...model.tokens(slice(at, places[start])));
      const [first, last] = [part.starts[places[start]], part.ends[places[end] - 1]];
      found.push({ token: token.content, id: token.id, start: first, end: last });
      at = places[end];
    }
    found.push(...model.tokens(slice(at, part.chars.length)));
    return found;
  }

  return {
    prefix: model.prefix,
    unknown: model.unknown,
    tokens(text) {
      /** @type {Token[]} */
      const found = [];
      let at = 0;
      for (const { token, start, end } of findRaw(text)) {
        found.push(...between(text, at, start));
        found.push({ token: token.content, id: token.id, start, end });
        at = end;
      }
      found.push(...between(text, at, text.length));
      return found;
    },
    decode: (tokens) => decodeWordPiece(tokens, model.prefix, file.decoder),
  };
}

/** @param {string[]} tokens @param {string} prefix @param {any} decoder @returns {string} */
function decodeWordPiece(tokens, prefix, decoder) {
  if (!decoder) return tokens.join(" ");
  return tokens
    .map((token, i) => {
      const joined = i === 0 ? token : token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`;
      return decoder.cleanup === false ? joined : CLEANUP.reduce((text, [a, b]) => text.replaceAll(a, b), joined);
    })
    .join("");
}

const CLEANUP = [
  [" .", "."],
  [" ?", "?"],
  [" !", "!"],
  [" ,", ","],
  [" ' ", "'"],
  [" n't", "n't"],
  [" 'm", "'m"],
  [" do not", " don't"],
  [" 's", "'s"],
  [" 've", "'ve"],
  [" 're", "'re"],
];

/** @param {any} file @param {any} options @returns {Promise<Engine>} Any other model, in @huggingface/tokenizers. */
async function library(file, options) {
  const kind = file.model.type;
  if (!["WordPiece", "BPE", "Unigram"].includes(kind)) throw new Error(`its model is ${kind}, not WordPiece, BPE or Unigram`);
  const { Tokenizer: Other } = await import("@huggingface/tokenizers");
  const tokenizer = new Other(file, { ...options, clean_up_tokenization_spaces: false });
  const splitters = [file.pre_tokenizer, ...(file.pre_tokenizer?.pretokenizers ?? [])];
  const levels = splitters.find((splitter) => splitter?.type === "ByteLevel");
  return {
    prefix: file.model.continuing_subword_prefix || null,
    unknown: file.model.unk_token ?? null,
    tokens(text) {
      const { ids, tokens } = tokenizer.encode(text, { add_special_tokens: false });
      const places = levels && bytePlaces(text, tokens, levels.add_prefix_space !== false);
      return ids.map((id, i) => ({ token: tokens[i], id, start: places?.[i][0] ?? -1, end: places?.[i][1] ?? -1 }));
    },
    decode: (tokens) => /** @type {any} */ (tokenizer.decoder)?.decode(tokens) ?? tokens.join(" "),
  };
}

/**
 * Places of byte-level tokens, in which each character stands for a byte of the text; spaces around them are left out.
 * @param {string} text
 * @param {string[]} tokens
 * @param {boolean} prefixed Whether a text that begins with no space was given one.
 * @returns {[number, number][] | null} Null if the tokens are not the bytes of the text, as with a normalizer.
 */
function bytePlaces(text, tokens, prefixed) {
  /** @type {number[]} */
  const starts = []; // of each byte, the place of its character
  /** @type {number[]} */
  const ends = [];
  let at = 0;
  if (prefixed && text && !/^\p{White_Space}/u.test(text)) {
    starts.push(0);
    ends.push(0);
  }
  for (const char of text) {
    const code = /** @type {number} */ (char.codePointAt(0));
    const bytes = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (let i = 0; i < bytes; i++) {
      starts.push(at);
      ends.push(at + char.length);
    }
    at += char.length;
  }
  const lengths = tokens.map((token) => [...token].length);
  if (lengths.reduce((sum, length) => sum + length, 0) !== starts.length) return null;
  let byte = 0;
  return lengths.map((length) => {
    let start = starts[byte];
    let end = ends[byte + length - 1];
    byte += length;
    while (start < end && text[start] === " ") start++;
    while (start < end && text[end - 1] === " ") end--;
    return [start, end];
  });
}
