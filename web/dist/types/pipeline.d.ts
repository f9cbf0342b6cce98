/** A loaded model. */
export class Pipeline {
    /** @param {string | URL} folder @param {LoadOptions} options @returns {Promise<Pipeline>} */
    static load(folder: string | URL, options: LoadOptions): Promise<Pipeline>;
    /**
     * @param {any} config
     * @param {PackedModel} model
     * @param {Tokenizer} tokenizer
     * @param {SentenceSettings} sentences
     * @param {number} bytes
     */
    constructor(config: any, model: PackedModel, tokenizer: Tokenizer, sentences: SentenceSettings, bytes: number);
    config: any;
    model: PackedModel;
    tokenizer: Tokenizer;
    sentences: import("./sentences.js").SentenceSettings;
    /** @type {string} */
    task: string;
    maxLength: number;
    bytes: number;
    onTokens: boolean;
    classifies: boolean;
    labels: string[];
    /**
     * Classifies texts, as transformers' text-classification pipeline does.
     * @param {Text[]} texts Texts, or pairs of them.
     * @param {{topK?: number | null, batchSize?: number}} [options] Labels of each text, the best first; null for all.
     * @returns {Promise<Label[][]>}
     */
    classify(texts: Text[], { topK, batchSize }?: {
        topK?: number | null;
        batchSize?: number;
    }): Promise<Label[][]>;
    /**
     * @param {Text[]} texts
     * @param {{batchSize?: number}} [options]
     * @returns {Promise<Float32Array[]>} The logits of each text.
     */
    logits(texts: Text[], { batchSize }?: {
        batchSize?: number;
    }): Promise<Float32Array[]>;
    /**
     * @param {Text[]} texts
     * @param {{pooling?: "mean" | "cls", normalize?: boolean, prompt?: string, batchSize?: number}} [options] By default as
     *   modules.json says; else the mean of the hidden states, not normalized. `prompt` stands before each text, of a
     *   pair before its first; by default the one that config_sentence_transformers.json names, else nothing.
     * @returns {Promise<Float32Array[]>} The vector of each text.
     */
    embed(texts: Text[], options?: {
        pooling?: "mean" | "cls";
        normalize?: boolean;
        prompt?: string;
        batchSize?: number;
    }): Promise<Float32Array[]>;
    /**
     * Entities, as transformers' token-classification pipeline gives them with aggregation_strategy="simple".
     * @param {string[]} texts
     * @param {{batchSize?: number}} [options]
     * @returns {Promise<Entity[][]>} `text.slice(start, end)` is what was marked.
     */
    tag(texts: string[], { batchSize }?: {
        batchSize?: number;
    }): Promise<Entity[][]>;
    /**
     * Answers to questions, each from its own context, which may be long: it is read in windows.
     * @param {string[]} questions
     * @param {string[]} contexts
     * @param {{unanswerable?: boolean, batchSize?: number}} [options] `unanswerable`: whether a context may hold no
     *   answer; by default if the model has learned from such rows.
     * @returns {Promise<Answer[]>}
     */
    answer(questions: string[], contexts: string[], { unanswerable, batchSize }?: {
        unanswerable?: boolean;
        batchSize?: number;
    }): Promise<Answer[]>;
    /** Gives the model's memory back; it cannot be used any more. */
    free(): void;
    /** @returns {About} */
    about(): About;
    #private;
}
export type Text = import("./tokenizer.js").Text;
export type Encoding = import("./tokenizer.js").Encoding;
export type Label = import("./outputs.js").Label;
export type Entity = import("./outputs.js").Entity;
export type Answer = import("./outputs.js").Answer;
export type Progress = import("./files.js").Progress;
export type SentenceSettings = import("./sentences.js").SentenceSettings;
export type LoadOptions = {
    /**
     * Told how many bytes came.
     */
    onProgress?: ((progress: Progress) => void) | undefined;
    /**
     * Whether the model runs in a worker: by default in pages, not in Node and in workers.
     */
    worker?: boolean | undefined;
    /**
     * Whether the Cache API keeps the files, where there is one: by default.
     */
    cache?: boolean | undefined;
    /**
     * Tokens to which texts are truncated; by default the model's limit.
     */
    maxLength?: number | null | undefined;
};
/**
 * What is known of a loaded model.
 */
export type About = {
    /**
     * Its name, as the configuration or the model's class tells: "sequence-classification",
     * "multi-label-classification", "regression", "reranking", "token-classification", "question-answering",
     * "sentence-embedding".
     */
    task: string;
    /**
     * The names of the classes, in the order of the logits.
     */
    labels: string[];
    /**
     * Tokens to which texts are truncated.
     */
    maxLength: number;
    /**
     * Bytes of its files, the runtime's included; compressed, where the browser tells.
     */
    bytes: number;
};
import { PackedModel } from "./model.js";
import { Tokenizer } from "./tokenizer.js";
