export class Source {
    /**
     * @param {string | URL} folder A URL (relative to the page), or in Node a path.
     * @param {{cache?: boolean, onProgress?: (progress: Progress) => void}} options
     */
    constructor(folder: string | URL, options: {
        cache?: boolean;
        onProgress?: (progress: Progress) => void;
    });
    local: boolean;
    cache: boolean;
    onProgress: (progress: Progress) => void;
    /** @type {Map<string, {loaded: number, total: number | null}>} */
    progress: Map<string, {
        loaded: number;
        total: number | null;
    }>;
    base: any;
    /** @returns {number} Bytes of the files that were read, as they came over the wire where the browser tells it. */
    get bytes(): number;
    /**
     * @param {string} name
     * @param {boolean} [optional] Whether it may be missing; then null.
     * @returns {Promise<any>}
     */
    json(name: string, optional?: boolean): Promise<any>;
    /**
     * @param {string | URL} name
     * @param {boolean} [optional]
     * @returns {Promise<Uint8Array | null>}
     */
    read(name: string | URL, optional?: boolean): Promise<Uint8Array | null>;
    #private;
}
/**
 * Bytes so far and in all; null while not known.
 */
export type Progress = {
    loaded: number;
    total: number | null;
};
