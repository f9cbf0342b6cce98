/**
 * Tensors of a safetensors file, checked as the Python reader (hf_xtc/reader.py) and the safetensors library check them.
 * Nothing is copied: tensors are views of the file's bytes.
 */
import { ModelError } from "./errors.js";

/**
 * @typedef {object} Tensor
 * @property {"F32" | "F16" | "BF16" | "U8"} dtype
 * @property {number[]} shape
 * @property {number} size Number of elements.
 * @property {Uint8Array} bytes
 */

/** @type {Map<unknown, number>} */
const ITEM_BYTES = new Map([["F32", 4], ["F16", 2], ["BF16", 2], ["U8", 1]]);
// Of JSON: many times what any model needs, and little enough that the engine's own parser takes neither long nor much memory.
export const MOST_JSON_BYTES = 2 ** 20;

/**
 * @param {string} why
 * @returns {never}
 */
function damaged(why) {
  throw new ModelError(`The weights cannot be read (${why}). Download model.safetensors again.`);
}

/** @param {unknown} value */
const isCount = (value) => Number.isSafeInteger(value) && /** @type {number} */ (value) >= 0;

/**
 * The tensors of a file by name.
 *
 * @param {Uint8Array} bytes The whole file.
 * @returns {Map<string, Tensor>}
 * @throws {ModelError} If the file is damaged, or a tensor holds NaN, infinite or too large values.
 */
export function readTensors(bytes) {
  if (!(bytes instanceof Uint8Array)) damaged("they are no Uint8Array");
  if (bytes.length < 8) damaged(`the file has ${bytes.length} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const headerBytes = view.getBigUint64(0, true);
  if (headerBytes > BigInt(Math.min(bytes.length - 8, MOST_JSON_BYTES))) damaged(`its header has ${headerBytes} bytes`);
  const start = 8 + Number(headerBytes);
  const entries = Object.entries(parseHeader(bytes.subarray(8, start))).filter(([name]) => name !== "__metadata__");
  const places = entries.map(([name, entry]) => placeOf(name, entry));
  checkPlaces(places, bytes.length - start);
  return new Map(places.map((place) => [place.name, tensorAt(place, bytes.subarray(start + place.first, start + place.last))]));
}

/**
 * @param {Uint8Array} bytes
 * @returns {Record<string, unknown>}
 */
function parseHeader(bytes) {
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch {
    damaged("its header is no JSON");
  }
  if (bytes[0] !== 0x7b || typeof header !== "object") damaged("its header is no JSON object");
  return header;
}

/** @typedef {{name: string, dtype: Tensor["dtype"], shape: number[], size: number, first: number, last: number}} Place */

/**
 * @param {string} name
 * @param {any} entry
 * @returns {Place}
 */
function placeOf(name, entry) {
  const item = ITEM_BYTES.get(entry?.dtype);
  const shape = entry?.shape;
  const offsets = entry?.data_offsets;
  if (!item) damaged(`${short(name)} has dtype ${short(entry?.dtype)}`);
  if (!Array.isArray(shape) || shape.length > 8 || !shape.every(isCount)) damaged(`${short(name)} has no shape`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) damaged(`${short(name)} has no offsets`);
  const size = shape.reduce((product, length) => product * length, 1);
  if (offsets[1] - offsets[0] !== size * item) damaged(`${short(name)} of shape [${shape}] has ${offsets[1] - offsets[0]} bytes`);
  return { name, dtype: entry.dtype, shape, size, first: offsets[0], last: offsets[1] };
}

/**
 * Tensors must fill the file one after another.
 *
 * @param {Place[]} places
 * @param {number} length
 */
function checkPlaces(places, length) {
  let end = 0;
  for (const { name, first, last } of [...places].sort((a, b) => a.first - b.first || a.last - b.last)) {
    if (first !== end) damaged(`${short(name)} begins at ${first}, not at ${end}`);
    end = last;
  }
  if (end !== length) damaged(`its tensors have ${end} bytes, but the file holds ${length}`);
}

/**
 * @param {Place} place
 * @param {Uint8Array} bytes
 * @returns {Tensor}
 */
function tensorAt({ name, dtype, shape, size }, bytes) {
  if (!isBounded(dtype, bytes)) damaged(`${short(name)} holds NaN, infinite or too large values`);
  return { dtype, shape, size, bytes };
}

/**
 * Whether no magnitude is above 2**18, as in the Python reader; compared as bits, whose order is the same.
 *
 * @param {Tensor["dtype"]} dtype
 * @param {Uint8Array} bytes
 */
function isBounded(dtype, bytes) {
  if (dtype === "U8") return true;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (dtype === "F32") {
    for (let i = 0; i < bytes.length; i += 4) if ((view.getUint32(i, true) & 0x7fffffff) > 0x48800000) return false;
    return true;
  }
  const most = dtype === "F16" ? 0x7bff : 0x4880;
  for (let i = 0; i < bytes.length; i += 2) if ((view.getUint16(i, true) & 0x7fff) > most) return false;
  return true;
}

/**
 * Writes a tensor of floats as float32.
 *
 * @param {Tensor} tensor
 * @param {Float32Array} out As many numbers.
 */
export function copyFloats({ dtype, size, bytes }, out) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (dtype === "F32") {
    for (let i = 0; i < size; ++i) out[i] = view.getFloat32(4 * i, true);
    return;
  }
  const bits = new Uint32Array(out.buffer, out.byteOffset, size);
  for (let i = 0; i < size; ++i) {
    const half = view.getUint16(2 * i, true);
    if (dtype === "BF16") {
      bits[i] = half << 16;
    } else {
      bits[i] = (half & 0x7fff) << 13; // the value times 2**-112, exact for subnormal numbers, too
      out[i] *= half & 0x8000 ? -(2 ** 112) : 2 ** 112;
    }
  }
}

/**
 * What a message quotes of a file.
 *
 * @param {unknown} value
 */
export function short(value) {
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "undefined");
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}
