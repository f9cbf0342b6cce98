/**
 * @param {Source} source
 * @returns {Promise<SentenceSettings>} Of a folder without a Pooling: the mean, not normalized.
 */
export function readSentenceSettings(source: Source): Promise<SentenceSettings>;
export type Source = import("./files.js").Source;
/**
 * `prompt` stands before each text, of a pair before its first.
 */
export type SentenceSettings = {
    pooling: "mean" | "cls";
    normalize: boolean;
    maxLength: number | null;
    prompt: string;
};
