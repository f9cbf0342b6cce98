/** A stand-in until the operator is merged. */
export class ModelError extends Error {}
export class PackedModel {
  /** @param {any} config @param {Uint8Array} bytes @param {any} wasm @returns {Promise<any>} */
  static async create(config, bytes, wasm) {
    throw new ModelError("not yet");
  }
}
