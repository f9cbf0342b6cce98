/**
 * The bytes of a struct of 32-bit WebAssembly. All structs with 64-bit fields are aligned to 8 bytes; the others may be.
 *
 * @param {Field[]} fields
 * @returns {Uint8Array}
 */
export function pack(fields: Field[]): Uint8Array;
/** Whether relaxed SIMD runs here: the bytes are a module whose only function is i8x16.relaxed_swizzle. */
export function hasRelaxedSimd(): boolean;
export const BYTES: 0;
export const PAIRS: 1;
export const NIBBLES: 2;
/**
 * @typedef {object} Exports
 * @property {WebAssembly.Memory} memory
 * @property {(bytes: number) => number} malloc
 * @property {(pointer: number) => void} free
 * @property {() => number} xtc_interface
 * @property {(layout: number, rows: bigint, columns: bigint) => bigint} xtc_layout_bytes
 * @property {(layout: number, levels: number, first: bigint, rows: bigint, columns: bigint, packed: number, out: number) => void} xtc_lay_out
 * @property {(variant: number, encoder: number, batch: number, head: number, outputs: number, threads: number) => bigint} xtc_encoder
 * @property {(dense: number, x: number, rows: bigint, columns: bigint, out: number) => void} xtc_dense
 */
/** An instance of the operator. Its memory ends with it. */
export class Operator {
    /**
     * @param {WebAssembly.Module | BufferSource} wasm
     * @returns {Promise<Operator>}
     * @throws {ModelError} If it is not the operator of this version, or does not run here.
     */
    static create(wasm: WebAssembly.Module | BufferSource): Promise<Operator>;
    /** @param {Exports} exports */
    constructor(exports: Exports);
    exports: Exports;
    /**
     * The address of so many bytes.
     *
     * @param {number} bytes
     * @returns {number}
     * @throws {ModelError} If there is no such memory.
     */
    allocate(bytes: number): number;
    /** @param {number} address */
    release(address: number): void;
    /**
     * Views of the memory at an address; valid until the next call of the operator.
     *
     * @param {number} address
     * @param {number} length
     */
    bytes(address: number, length: number): Uint8Array<ArrayBuffer>;
    /**
     * @param {number} address
     * @param {number} length
     */
    floats(address: number, length: number): Float32Array<ArrayBuffer>;
    /**
     * The address of a copy of bytes.
     *
     * @param {Uint8Array} bytes
     * @returns {number}
     */
    put(bytes: Uint8Array): number;
    /**
     * The address of whole numbers, 64 bits each.
     *
     * @param {number[]} values 32-bit numbers.
     * @returns {number}
     */
    putLongs(values: number[]): number;
}
export type Field = ["i32" | "i64" | "f32" | "pointer", number] | ["struct", Uint8Array];
export type Exports = {
    memory: WebAssembly.Memory;
    malloc: (bytes: number) => number;
    free: (pointer: number) => void;
    xtc_interface: () => number;
    xtc_layout_bytes: (layout: number, rows: bigint, columns: bigint) => bigint;
    xtc_lay_out: (layout: number, levels: number, first: bigint, rows: bigint, columns: bigint, packed: number, out: number) => void;
    xtc_encoder: (variant: number, encoder: number, batch: number, head: number, outputs: number, threads: number) => bigint;
    xtc_dense: (dense: number, x: number, rows: bigint, columns: bigint, out: number) => void;
};
