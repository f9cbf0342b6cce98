/** BERT's normalizer. */
export class BertNormalizer {
    /** @param {Record<string, any>} options As tokenizer.json has them. */
    constructor(options: Record<string, any>);
    clean: boolean;
    chinese: boolean;
    lowercase: boolean;
    strip: any;
    /** @type {Map<string, string[]>} */
    seen: Map<string, string[]>;
    /**
     * @param {string} text
     * @param {number} [from] Where the part to normalize begins.
     * @param {number} [to] Where it ends.
     * @returns {Normalized}
     */
    normalize(text: string, from?: number, to?: number): Normalized;
    /** @param {string} char @returns {string[]} What becomes of a character. */
    parts(char: string): string[];
    #private;
}
/** BERT's pre-tokenizer and WordPiece. */
export class WordPiece {
    /** @param {Record<string, any>} options The `model` of tokenizer.json. */
    constructor(options: Record<string, any>);
    /** @type {Map<string, number>} */
    vocabulary: Map<string, number>;
    prefix: any;
    unknown: any;
    longest: any;
    unknownId: number;
    /** @param {Normalized} text @returns {Token[]} */
    tokens(text: Normalized): Token[];
    #private;
}
/**
 * A token: its text, its id, and where it stands in the text, in UTF-16 units as `text.slice(start, end)` takes them.
 */
export type Token = {
    token: string;
    id: number;
    start: number;
    end: number;
};
/**
 * A text after normalization: its characters, and the place in the original text of each.
 */
export type Normalized = {
    chars: string[];
    starts: number[];
    ends: number[];
};
