#!/usr/bin/env -S node --no-warnings --no-turbo-fast-api-calls
// Runs a wasm32-wasip1 test or bench binary under node:wasi:
//   scripts/run-wasip1.mjs <module> [arguments…]
// Cargo calls it as the target's runner. A trap is a failed test: panics abort in WebAssembly.
// Node 20 (20.20.2) corrupts its stack when the optimiser calls WASI functions by V8's fast path:
// about half of the runs of ten seconds died of SIGSEGV after their last test. Hence the flag.
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { argv, cwd, env, exit } from 'node:process';
import { WASI } from 'node:wasi';

const [path, ...args] = argv.slice(2);
const wasi = new WASI({
  version: 'preview1',
  args: [basename(path), ...args],
  env,
  // Benches keep their results below the current directory; tests read nothing.
  preopens: { '.': cwd(), '/': '/' },
  returnOnExit: true,
});
const module = await WebAssembly.compile(await readFile(path));
const instance = await WebAssembly.instantiate(module, wasi.getImportObject());
try {
  exit(wasi.start(instance));
} catch (trap) {
  console.error(`${basename(path)}: ${trap}`);
  exit(101);
}
