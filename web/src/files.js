/**
 * Reads the files of a model: over the network in a browser, kept by the Cache API; of a folder in Node.
 *
 * A kept file is asked for again with `cache: "no-cache"`: the server answers 304 where it did not change, and without
 * a network the kept file is used.
 */
import { ModelError } from "./errors.js";

const CACHE = "hf-xtc";

/** @typedef {{loaded: number, total: number | null}} Progress Bytes so far and in all; null while not known. */

/** @type {any} */
const host = globalThis;
const node = host.process?.versions?.node ? host.process : null;

export class Source {
  /**
   * @param {string | URL} folder A URL (relative to the page), or in Node a path.
   * @param {{cache?: boolean, onProgress?: (progress: Progress) => void}} options
   */
  constructor(folder, options) {
    const name = String(folder);
    const remote = /^https?:/.test(name);
    this.local = !!node && !remote;
    this.cache = options.cache !== false && "caches" in globalThis;
    this.onProgress = options.onProgress ?? (() => {});
    /** @type {Map<string, {loaded: number, total: number | null}>} */
    this.progress = new Map();
    if (this.local) {
      this.base = /^file:/.test(name) ? name : node.getBuiltinModule("node:url").pathToFileURL(name).href;
    } else {
      this.base = new URL(name, host.document?.baseURI ?? host.location?.href).href;
    }
    if (!this.base.endsWith("/")) this.base += "/";
  }

  /** @returns {number} Bytes of the files that were read, as they came over the wire where the browser tells it. */
  get bytes() {
    let sum = 0;
    for (const [url, { loaded }] of this.progress) {
      const entries = /** @type {any[]} */ (this.local ? [] : performance.getEntriesByName(url));
      sum += entries.at(-1)?.encodedBodySize || loaded;
    }
    return sum;
  }

  /**
   * @param {string} name
   * @param {boolean} [optional] Whether it may be missing; then null.
   * @returns {Promise<any>}
   */
  async json(name, optional = false) {
    const bytes = await this.read(name, optional);
    if (bytes === null) return null;
    const text = new TextDecoder().decode(bytes);
    if (/^\s*</.test(text)) {
      throw new ModelError(`${this.base}${name} is a web page, not JSON. Check the address of the model's folder.`);
    }
    try {
      return JSON.parse(text);
    } catch (error) {
      const why = /** @type {Error} */ (error).message;
      throw new ModelError(`${this.base}${name} is no JSON (${why}). Download or write it again.`);
    }
  }

  /**
   * @param {string | URL} name
   * @param {boolean} [optional]
   * @returns {Promise<Uint8Array | null>}
   */
  async read(name, optional = false) {
    const url = new URL(name, this.base).href;
    return url.startsWith("file:") && node ? this.#readFile(url, optional) : this.#fetch(url, optional);
  }

  /** @param {string} url @param {boolean} optional @returns {Promise<Uint8Array | null>} */
  async #readFile(url, optional) {
    try {
      const bytes = await node.getBuiltinModule("node:fs").promises.readFile(new URL(url));
      this.#count(url, bytes.length, bytes.length);
      return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length);
    } catch (error) {
      const code = /** @type {any} */ (error).code;
      if (optional && code === "ENOENT") return null;
      const why = code === "ENOENT" ? "there is no such file" : /** @type {Error} */ (error).message;
      const path = node.getBuiltinModule("node:url").fileURLToPath(url);
      throw new ModelError(`${path} cannot be read (${why}). Give the folder of a packed model.`);
    }
  }

  /** @param {string} url @param {boolean} optional @returns {Promise<Uint8Array | null>} */
  async #fetch(url, optional) {
    const store = this.cache ? await caches.open(CACHE).catch(() => null) : null;
    const kept = await store?.match(url);
    let response = await fetch(url, { cache: "no-cache" }).catch((error) => {
      if (kept) return kept;
      throw new ModelError(
        `${url} cannot be fetched (${error.message}). Check the network, and that the server allows this page to ask.`,
      );
    });
    if (!response.ok && kept && response.status >= 500) response = kept;
    if (!response.ok) {
      if (optional && response.status === 404) return null;
      throw new ModelError(`${url} cannot be fetched: the server answers ${response.status}. Check the address.`);
    }
    const copy = store && response !== kept ? response.clone() : null;
    const bytes = await this.#body(url, response);
    if (store && copy) await store.put(url, copy).catch(() => {}); // a full disk is no reason to fail
    return bytes;
  }

  /** @param {string} url @param {Response} response @returns {Promise<Uint8Array>} */
  async #body(url, response) {
    const length = Number(response.headers.get("content-length"));
    const total = length && !response.headers.get("content-encoding") ? length : null;
    this.#count(url, 0, total);
    const chunks = [];
    let loaded = 0;
    try {
      const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        chunks.push(part.value);
        loaded += part.value.length;
        this.#count(url, loaded, total);
      }
    } catch (error) {
      const why = /** @type {Error} */ (error).message;
      throw new ModelError(`${url} broke off after ${loaded} bytes (${why}). Load it again.`);
    }
    const bytes = new Uint8Array(loaded);
    let at = 0;
    for (const chunk of chunks) {
      bytes.set(chunk, at);
      at += chunk.length;
    }
    this.#count(url, loaded, loaded);
    return bytes;
  }

  /** @param {string} url @param {number} loaded @param {number | null} total */
  #count(url, loaded, total) {
    this.progress.set(url, { loaded, total });
    const files = [...this.progress.values()];
    const known = files.every((file) => file.total !== null);
    this.onProgress({
      loaded: files.reduce((sum, file) => sum + file.loaded, 0),
      total: known ? files.reduce((sum, file) => sum + (file.total ?? 0), 0) : null,
    });
  }
}
