// Makes dist/editor.js, the page's script with all packages in it, and dist/import-map.json, by which a browser gets
// the same files from a public server. The latter is committed as import-map.json, whose test says when to copy it.
import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const SERVER = "https://cdn.jsdelivr.net/npm/";
const FOLDER = "node_modules/";

const { metafile } = await build({
  entryPoints: ["editor.js"],
  outfile: "dist/editor.js",
  bundle: true,
  format: "esm",
  minify: true,
  target: "es2022",
  metafile: true,
});

const { packages } = JSON.parse(await readFile("package-lock.json"));
/** The address of a package's file, byte for byte as npm has it. */
const address = (path) => {
  const [name] = path.slice(FOLDER.length).match(/^(@[^/]+\/)?[^/]+/);
  return `${SERVER}${name}@${packages[FOLDER + name].version}/${path.slice(FOLDER.length + name.length + 1)}`;
};

const imports = {};
const integrity = {};
for (const [path, input] of Object.entries(metafile.inputs)) {
  if (path.startsWith(FOLDER)) {
    integrity[address(path)] = "sha384-" + createHash("sha384").update(await readFile(path)).digest("base64");
  }
  for (const { original, path: target } of input.imports) {
    if (!original.startsWith(".")) imports[original] = address(target);
  }
}
const sorted = (object) => Object.fromEntries(Object.entries(object).sort(([a], [b]) => (a < b ? -1 : 1)));
const map = { imports: sorted(imports), integrity: sorted(integrity) };
await writeFile("dist/import-map.json", JSON.stringify(map, null, 2) + "\n");
