/** The native operator as WebAssembly: its memory, and the structs of hf_xtc/native/csrc/kernels.hpp in it. */
import { ModelError } from "./errors.js";

const INTERFACE = 8; // as in library.cpp

// Layouts, as in csrc/kernels.hpp.
export const BYTES = 0;
export const PAIRS = 1;
export const NIBBLES = 2;

/** @typedef {["i32" | "i64" | "f32" | "pointer", number] | ["struct", Uint8Array]} Field */

const SIZE = { i32: 4, i64: 8, f32: 4, pointer: 4 };

/**
 * The bytes of a struct of 32-bit WebAssembly. All structs with 64-bit fields are aligned to 8 bytes; the others may be.
 *
 * @param {Field[]} fields
 * @returns {Uint8Array}
 */
export function pack(fields) {
  /** @type {number[]} */
  const places = [];
  let end = 0;
  for (const [kind, value] of fields) {
    const [size, step] = kind === "struct" ? [value.length, 8] : [SIZE[kind], SIZE[kind]];
    places.push(Math.ceil(end / step) * step);
    end = places[places.length - 1] + size;
  }
  const bytes = new Uint8Array(Math.ceil(end / 8) * 8);
  const view = new DataView(bytes.buffer);
  fields.forEach(([kind, value], i) => {
    if (kind === "struct") bytes.set(value, places[i]);
    else if (kind === "i64") view.setBigInt64(places[i], BigInt(value), true);
    else if (kind === "f32") view.setFloat32(places[i], value, true);
    else view.setInt32(places[i], value, true);
  });
  return bytes;
}

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
  static async create(wasm) {
    let exports;
    try {
      const module = wasm instanceof WebAssembly.Module ? wasm : await WebAssembly.compile(wasm);
      exports = /** @type {Exports} */ (/** @type {unknown} */ ((await WebAssembly.instantiate(module, {})).exports));
    } catch (error) {
      throw new ModelError(`The operator does not run here (${error instanceof Error ? error.message : error}). It needs WebAssembly with SIMD.`);
    }
    if (exports.xtc_interface?.() !== INTERFACE) throw new ModelError("The WebAssembly file is of another version. Take both from one package.");
    return new Operator(exports);
  }

  /** @param {Exports} exports */
  constructor(exports) {
    this.exports = exports;
  }

  /**
   * The address of so many bytes.
   *
   * @param {number} bytes
   * @returns {number}
   * @throws {ModelError} If there is no such memory.
   */
  allocate(bytes) {
    const address = bytes < 2 ** 32 ? this.exports.malloc(Math.max(bytes, 1)) >>> 0 : 0;
    if (!address) throw new ModelError(`There is no memory for ${(bytes / 2 ** 20).toFixed()} MiB more. Run fewer or shorter texts at once.`);
    return address;
  }

  /** @param {number} address */
  release(address) {
    this.exports.free(address);
  }

  /**
   * Views of the memory at an address; valid until the next call of the operator.
   *
   * @param {number} address
   * @param {number} length
   */
  bytes(address, length) {
    return new Uint8Array(this.exports.memory.buffer, address, length);
  }

  /**
   * @param {number} address
   * @param {number} length
   */
  floats(address, length) {
    return new Float32Array(this.exports.memory.buffer, address, length);
  }

  /**
   * The address of a copy of bytes.
   *
   * @param {Uint8Array} bytes
   * @returns {number}
   */
  put(bytes) {
    const address = this.allocate(bytes.length);
    this.bytes(address, bytes.length).set(bytes);
    return address;
  }

  /**
   * The address of whole numbers, 64 bits each.
   *
   * @param {number[]} values 32-bit numbers.
   * @returns {number}
   */
  putLongs(values) {
    const address = this.allocate(8 * values.length);
    const halves = new Int32Array(this.exports.memory.buffer, address, 2 * values.length);
    values.forEach((value, i) => {
      halves[2 * i] = value;
      halves[2 * i + 1] = value < 0 ? -1 : 0;
    });
    return address;
  }
}

/** Whether relaxed SIMD runs here: the bytes are a module whose only function is i8x16.relaxed_swizzle. */
export function hasRelaxedSimd() {
  const type = [1, 5, 1, 0x60, 0, 1, 0x7b];
  const code = [10, 15, 1, 13, 0, 0x41, 0, 0xfd, 15, 0x41, 0, 0xfd, 15, 0xfd, 0x80, 2, 11];
  return WebAssembly.validate(new Uint8Array([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, ...type, 3, 2, 1, 0, ...code]));
}
