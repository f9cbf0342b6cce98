/**
 * The tensors of a file by name.
 *
 * @param {Uint8Array} bytes The whole file.
 * @returns {Map<string, Tensor>}
 * @throws {ModelError} If the file is damaged, or a tensor holds NaN, infinite or too large values.
 */
export function readTensors(bytes: Uint8Array): Map<string, Tensor>;
/**
 * Writes a tensor of floats as float32.
 *
 * @param {Tensor} tensor
 * @param {Float32Array} out As many numbers.
 */
export function copyFloats({ dtype, size, bytes }: Tensor, out: Float32Array): void;
/**
 * What a message quotes of a file.
 *
 * @param {unknown} value
 */
export function short(value: unknown): string;
export const MOST_JSON_BYTES: number;
export type Place = {
    name: string;
    dtype: Tensor["dtype"];
    shape: number[];
    size: number;
    first: number;
    last: number;
};
export type Tensor = {
    dtype: "F32" | "F16" | "BF16" | "U8";
    shape: number[];
    /**
     * Number of elements.
     */
    size: number;
    bytes: Uint8Array;
};
