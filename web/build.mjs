// Builds dist/: the module, its worker, the library of other tokenizers, and types; xtc.wasm is made by build_wasm.sh.
// Usage: node build.mjs [FOLDER]
import { execFileSync } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "dist");
const version = "2022"; // of ECMAScript: browsers with SIMD in WebAssembly and modules in workers know it
const common = { absWorkingDir: here, bundle: true, format: "esm", target: `es${version}`, minify: true, logLevel: "warning" };

/** Leaves imports of these names to files beside the one that is built. */
function beside(files) {
  return {
    name: "beside",
    setup(builder) {
      builder.onResolve({ filter: /./ }, ({ path, kind }) =>
        kind !== "entry-point" && path in files ? { path: files[path], external: true } : undefined,
      );
    },
  };
}

const parts = [
  ["src/hf-xtc.js", "hf-xtc.js", { "@huggingface/tokenizers": "./tokenizers.js" }],
  ["src/hf-xtc-worker.js", "hf-xtc-worker.js", { "./hf-xtc.js": "./hf-xtc.js" }],
  ["@huggingface/tokenizers", "tokenizers.js", {}],
];
const banner = { js: "/*! @huggingface/tokenizers, Apache-2.0 */" };
for (const [entry, name, files] of parts) {
  const more = entry.startsWith("@") ? { banner } : {};
  await build({ ...common, ...more, entryPoints: [entry], outfile: join(out, name), plugins: [beside(files)] });
}
const tsc = join(here, "node_modules/typescript/bin/tsc");
execFileSync(process.execPath, [tsc, "-p", join(here, "tsconfig.json"), "--outDir", join(out, "types")], { stdio: "inherit" });
