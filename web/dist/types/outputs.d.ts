/** @param {ArrayLike<number>} logits @returns {number[]} Probabilities. */
export function softmax(logits: ArrayLike<number>): number[];
/**
 * @param {any} config
 * @param {string} task
 * @param {ArrayLike<number>} logits
 * @returns {number[]} Probabilities, or the plain numbers of a regression.
 */
export function scores(config: any, task: string, logits: ArrayLike<number>): number[];
/**
 * The best labels first; equal ones in the order of the classes.
 * @param {string[]} labels
 * @param {number[]} scores
 * @param {number | null} topK
 * @returns {Label[]}
 */
export function best(labels: string[], scores: number[], topK: number | null): Label[];
/**
 * Neighbours with one tag as one entity, of which B- begins another: aggregation_strategy="simple".
 * @param {string} text
 * @param {Encoding} encoding
 * @param {Float32Array} logits Of each token, one row after another.
 * @param {string[]} labels
 * @param {Engine} engine
 * @returns {Entity[]}
 */
export function entities(text: string, encoding: Encoding, logits: Float32Array, labels: string[], engine: Engine): Entity[];
/**
 * The best span of a context over its windows.
 * @param {string} context
 * @param {{encoding: Encoding, logits: Float32Array}[]} windows Logits of start and end of each token.
 * @param {boolean} unanswerable Whether the answer may be empty: where [CLS] scores more than any span.
 * @returns {Answer}
 */
export function answer(context: string, windows: {
    encoding: Encoding;
    logits: Float32Array;
}[], unanswerable: boolean): Answer;
export type Token = import("./wordpiece.js").Token;
export type Encoding = import("./tokenizer.js").Encoding;
export type Engine = import("./tokenizer.js").Engine;
export type Label = {
    label: string;
    score: number;
};
export type Entity = {
    entity_group: string;
    score: number;
    word: string;
    start: number;
    end: number;
};
export type Answer = {
    answer: string;
    score: number;
    start: number | null;
    end: number | null;
};
