/**
 * The bucket of a distance from a query to a key. Buckets of one distance each, then such that grow by a factor of
 * sqrt(2) (T5, https://arxiv.org/abs/1910.10683), half of all for each sign.
 *
 * @param {number} distance
 */
export function bucketOf(distance: number): number;
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
    static create(config: unknown, bytes: Uint8Array, wasm: WebAssembly.Module | BufferSource): Promise<PackedModel>;
    /** @param {Reader} reader */
    constructor(reader: Reader);
    /** @type {Config} */
    config: Config;
    task: string;
    /** @type {number} */
    hiddenSize: number;
    /** Whether it tells token types apart. */
    hasTypes: boolean;
    /** The tokens that a sequence can have. */
    maxLength: number;
    /** Outputs of the head on texts or on tokens; 0 without one. */
    numLabels: number;
    /**
     * Computes a batch of sequences, whose lengths may differ.
     *
     * @param {ArrayLike<number>[]} ids Token ids of each sequence, at least one.
     * @param {ArrayLike<number>[] | null} [types] Token types of each sequence; all 0 by default.
     * @returns {Outputs}
     * @throws {ModelError} If an id is none of the model's, or a sequence is empty or longer than `maxLength`.
     */
    run(ids: ArrayLike<number>[], types?: ArrayLike<number>[] | null): Outputs;
    /** Gives the memory back; the model cannot run any more. */
    free(): void;
    #private;
}
export type Config = import("./families.js").Config;
export type Family = import("./families.js").Family;
export type Tensor = import("./safetensors.js").Tensor;
/**
 * What a model computes of a batch.
 */
export type Outputs = {
    /**
     * Tokens of each sequence.
     */
    lengths: Int32Array;
    /**
     * (tokens, hiddenSize): the last hidden states, of one sequence after another.
     */
    hidden: Float32Array;
    /**
     * (sequences, hiddenSize), of a sequence classifier: what its last linear reads.
     */
    pooled?: Float32Array<ArrayBufferLike> | undefined;
    /**
     * (sequences, numLabels), or (tokens, numLabels) of a head on tokens.
     */
    logits?: Float32Array<ArrayBufferLike> | undefined;
};
import { ModelError } from "./errors.js";
import { hasRelaxedSimd } from "./operator.js";
import { parseConfig } from "./families.js";
/** The tensors of a file under a config, checked where they are used, and copied into the operator's memory. */
declare class Reader {
    /**
     * @param {Config} config
     * @param {Family} family
     * @param {Map<string, Tensor>} tensors
     * @param {Operator} operator
     */
    constructor(config: Config, family: Family, tensors: Map<string, Tensor>, operator: Operator);
    config: import("./families.js").Config;
    family: import("./families.js").Family;
    tensors: Map<string, import("./safetensors.js").Tensor>;
    operator: Operator;
    prefix: string;
    /**
     * The tensor of a name, of the given shape.
     *
     * @param {string} name
     * @param {number[]} [shape]
     */
    tensor(name: string, shape?: number[]): import("./safetensors.js").Tensor;
    /** @param {string} path */
    isPacked(path: string): boolean;
    /** @param {string} path */
    place(path: string): string;
    /**
     * The recipe's codes for a weight.
     *
     * @param {string} path
     */
    codes(path: string): import("./families.js").Codes;
    /**
     * The number of columns of a weight, which its packed rows, padded to whole bytes, leave open.
     *
     * @param {string} path
     * @returns {number}
     */
    columns(path: string): number;
    /**
     * Bytes and scales of a quantized weight.
     *
     * @param {string} path
     * @returns {{packed: Tensor, scale: Tensor}}
     */
    packed(path: string): {
        packed: Tensor;
        scale: Tensor;
    };
    /**
     * The address of a tensor in float32, of the given shape.
     *
     * @param {string} name
     * @param {number[]} shape
     */
    floats(name: string, shape: number[]): number;
    /**
     * The struct of quantized linears of `rows` output features each, as one weight.
     *
     * @param {string[]} paths
     * @param {number} rows
     * @returns {Uint8Array}
     */
    weight(paths: string[], rows: number): Uint8Array;
    /** @param {number} bytes */
    zeros(bytes: number): number;
    /**
     * The struct of a linear in float32.
     *
     * @param {string} path
     * @param {number} rows
     * @returns {Uint8Array}
     */
    dense(path: string, rows: number): Uint8Array;
    /**
     * Fields of a linear that may be packed or in float: the addresses of its two structs, of which one is null.
     *
     * @param {string} path
     * @param {number} rows
     * @returns {import("./operator.js").Field[]}
     */
    linear(path: string, rows: number): import("./operator.js").Field[];
    /**
     * The struct of an embedding table, in the file's layout, and its number of rows.
     *
     * @param {string} path
     * @returns {{rows: number, struct: Uint8Array}}
     */
    table(path: string): {
        rows: number;
        struct: Uint8Array;
    };
    /**
     * Addresses of a LayerNorm's gamma and beta.
     *
     * @param {string} path
     * @param {number} width
     * @returns {import("./operator.js").Field[]}
     */
    norm(path: string, width: number): import("./operator.js").Field[];
    /**
     * The struct of one encoder layer.
     *
     * @param {number} number
     * @returns {Uint8Array}
     */
    layer(number: number): Uint8Array;
    /**
     * The biases of distances, (buckets, heads) in float32; null where there are none.
     *
     * @returns {Float32Array | null}
     */
    distanceBiases(): Float32Array | null;
}
import { Operator } from "./operator.js";
export { ModelError, hasRelaxedSimd, parseConfig };
