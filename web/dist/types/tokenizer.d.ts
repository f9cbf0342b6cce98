/** @param {unknown} error @returns {string} */
export function reason(error: unknown): string;
export class Tokenizer {
    /**
     * @param {any} file The content of tokenizer.json.
     * @param {any} options The content of tokenizer_config.json.
     * @param {number} longest The most tokens that the model takes.
     * @returns {Promise<Tokenizer>}
     */
    static create(file: any, options: any, longest: number): Promise<Tokenizer>;
    /**
     * @param {any} file
     * @param {any} options
     * @param {number} longest
     * @param {Engine} engine
     */
    constructor(file: any, options: any, longest: number, engine: Engine);
    engine: Engine;
    single: Piece[];
    pair: Piece[];
    left: boolean;
    hasTypes: boolean;
    longest: number;
    /** Limits texts to fewer tokens. @param {number} length */
    limit(length: number): void;
    /** @param {Text} text @returns {Encoding} */
    encode(text: Text): Encoding;
    /**
     * A question with its context in windows, which share `stride` tokens of the context.
     * @param {string} question
     * @param {string} context
     * @param {number} stride
     * @returns {Encoding[]}
     */
    windows(question: string, context: string, stride: number): Encoding[];
}
export type Token = import("./wordpiece.js").Token;
/**
 * A text, or a pair of texts.
 */
export type Text = string | [string, string];
/**
 * A text's tokens, with the special ones: `parts` is 0 for tokens of the first text, 1 for the second, -1 for special.
 */
export type Encoding = {
    ids: number[];
    types: number[];
    tokens: Token[];
    parts: number[];
};
/**
 * What splits a text into tokens. Their places are -1 where they are not known.
 */
export type Engine = {
    tokens(text: string): Token[];
    decode(tokens: string[]): string;
    prefix: string | null;
    unknown: string | null;
};
/**
 * A piece of a template.
 */
export type Piece = {
    part: number;
    type: number;
} | {
    token: Token;
    type: number;
};
export type Added = {
    content: string;
    id: number;
    lstrip: boolean;
    rstrip: boolean;
    single_word: boolean;
};
