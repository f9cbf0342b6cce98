/**
 * WordPiece as BERT has it: text -> tokens with their places in the text, equal to those of the tokenizers library.
 */
import { DECOMPOSED, MARKS, PUNCTUATION, REMOVED } from "./unicode.js";

/**
 * A token: its text, its id, and where it stands in the text, in UTF-16 units as `text.slice(start, end)` takes them.
 * @typedef {{token: string, id: number, start: number, end: number}} Token
 */

/**
 * A text after normalization: its characters, and the place in the original text of each.
 * @typedef {{chars: string[], starts: number[], ends: number[]}} Normalized
 */

/** @param {string} ranges @returns {(code: number) => boolean} Whether a code point is in packed ranges. */
function within(ranges) {
  /** @type {number[]} */
  const firsts = [];
  /** @type {number[]} */
  const lasts = [];
  let at = 0;
  const numbers = ranges.split(" ").map((number) => parseInt(number, 36));
  for (let i = 0; i < numbers.length; i += 2) {
    firsts.push(at + numbers[i]);
    at += numbers[i] + numbers[i + 1];
    lasts.push(at);
  }
  return (code) => {
    let low = 0;
    let high = firsts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (lasts[middle] < code) low = middle + 1;
      else high = middle;
    }
    return low < firsts.length && firsts[low] <= code;
  };
}

const isRemoved = within(REMOVED);
const isMark = within(MARKS);
const isPunctuation = within(PUNCTUATION);
const isDecomposed = within(DECOMPOSED);
const SPACE = /^\p{White_Space}$/u;

/** @param {number} code @returns {boolean} Whether BERT sets a character apart; the ranges are the library's. */
function isChinese(code) {
  return (
    (code >= 0x4e00 && code <= 0x9fff) ||
    (code >= 0x3400 && code <= 0x4dbf) ||
    (code >= 0x20000 && code <= 0x2a6df) ||
    (code >= 0x2a700 && code <= 0x2b73f) ||
    (code >= 0x2b740 && code <= 0x2b81f) ||
    (code >= 0x2b920 && code <= 0x2ceaf) ||
    (code >= 0xf900 && code <= 0xfaff) ||
    (code >= 0x2f800 && code <= 0x2fa1f)
  );
}

/** BERT's normalizer. */
export class BertNormalizer {
  /** @param {Record<string, any>} options As tokenizer.json has them. */
  constructor(options) {
    this.clean = options.clean_text !== false;
    this.chinese = options.handle_chinese_chars !== false;
    this.lowercase = options.lowercase !== false;
    this.strip = options.strip_accents ?? this.lowercase;
    /** @type {Map<string, string[]>} */
    this.seen = new Map();
  }

  /**
   * @param {string} text
   * @param {number} [from] Where the part to normalize begins.
   * @param {number} [to] Where it ends.
   * @returns {Normalized}
   */
  normalize(text, from = 0, to = text.length) {
    /** @type {Normalized} */
    const found = { chars: [], starts: [], ends: [] };
    for (let start = from; start < to; ) {
      const char = String.fromCodePoint(/** @type {number} */ (text.codePointAt(start)));
      const end = start + char.length;
      for (const part of this.parts(char)) {
        found.chars.push(part);
        found.starts.push(start);
        found.ends.push(end);
      }
      start = end;
    }
    return found;
  }

  /** @param {string} char @returns {string[]} What becomes of a character. */
  parts(char) {
    let parts = this.seen.get(char);
    if (parts === undefined) {
      parts = this.#parts(char);
      this.seen.set(char, parts);
    }
    return parts;
  }

  /** @param {string} char @returns {string[]} */
  #parts(char) {
    const code = /** @type {number} */ (char.codePointAt(0));
    if (code >= 0xd800 && code <= 0xdfff) return []; // half of a pair, which is no character
    if (this.clean && isRemoved(code)) return [];
    if (this.clean && SPACE.test(char)) return [" "];
    let parts = [char];
    if (this.strip) {
      const decomposed = code < 0x10000 || isDecomposed(code) ? [...char.normalize("NFD")] : parts;
      parts = decomposed.filter((part) => !isMark(/** @type {number} */ (part.codePointAt(0))));
    }
    if (this.lowercase) parts = parts.flatMap((part) => [...part.toLowerCase()]);
    return this.chinese && isChinese(code) ? [" ", ...parts, " "] : parts;
  }
}

/** @param {Normalized} text @returns {[number, number][]} The first and the last character of each word, less one. */
function words(text) {
  /** @type {[number, number][]} */
  const found = [];
  let first = -1;
  const { chars } = text;
  for (let i = 0; i <= chars.length; i++) {
    const space = i === chars.length || SPACE.test(chars[i]);
    const alone = !space && isPunctuation(/** @type {number} */ (chars[i].codePointAt(0)));
    if ((space || alone) && first >= 0) {
      found.push([first, i]);
      first = -1;
    }
    if (alone) found.push([i, i + 1]);
    else if (!space && first < 0) first = i;
  }
  return found;
}

/** BERT's pre-tokenizer and WordPiece. */
export class WordPiece {
  /** @param {Record<string, any>} options The `model` of tokenizer.json. */
  constructor(options) {
    /** @type {Map<string, number>} */
    this.vocabulary = new Map(Object.entries(options.vocab));
    this.prefix = options.continuing_subword_prefix ?? "##";
    this.unknown = options.unk_token ?? "[UNK]";
    this.longest = options.max_input_chars_per_word ?? 100;
    const id = this.vocabulary.get(this.unknown);
    if (id === undefined) throw new Error(`its vocabulary lacks ${this.unknown}`);
    this.unknownId = id;
  }

  /** @param {Normalized} text @returns {Token[]} */
  tokens(text) {
    /** @type {Token[]} */
    const found = [];
    for (const [first, last] of words(text)) {
      const pieces = last - first > this.longest ? null : this.#pieces(text, first, last);
      if (pieces) found.push(...pieces);
      else {
        const [start, end] = [text.starts[first], text.ends[last - 1]];
        found.push({ token: this.unknown, id: this.unknownId, start, end });
      }
    }
    return found;
  }

  /** @param {Normalized} text @param {number} first @param {number} last @returns {Token[] | null} */
  #pieces(text, first, last) {
    /** @type {Token[]} */
    const pieces = [];
    for (let from = first; from < last; ) {
      let token = (from > first ? this.prefix : "") + text.chars.slice(from, last).join("");
      let to = last;
      let id = this.vocabulary.get(token);
      while (id === undefined && --to > from) {
        token = token.slice(0, token.length - text.chars[to].length);
        id = this.vocabulary.get(token);
      }
      if (id === undefined) return null;
      pieces.push({ token, id, start: text.starts[from], end: text.ends[to - 1] });
      from = to;
    }
    return pieces;
  }
}
