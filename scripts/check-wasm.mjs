// Checks a filter module against what Envoy offers, without Envoy:
//   node scripts/check-wasm.mjs <module> <most bytes>
// One import that the host does not know, and Envoy refuses the whole module.
import { readFileSync } from 'node:fs';
import { argv, exit } from 'node:process';

// Host functions of ABI 0.2.x: proxy-wasm/proxy-wasm-cpp-host, include/proxy-wasm/exports.h,
// FOR_ALL_HOST_FUNCTIONS, and of FOR_ALL_HOST_FUNCTIONS_ABI_SPECIFIC those of 0.2.
const PROXY = `log get_status set_property get_property send_local_response get_shared_data
  set_shared_data register_shared_queue resolve_shared_queue dequeue_shared_queue
  enqueue_shared_queue get_header_map_value add_header_map_value replace_header_map_value
  remove_header_map_value get_header_map_pairs set_header_map_pairs get_header_map_size
  get_buffer_status get_buffer_bytes set_buffer_bytes http_call grpc_call grpc_stream grpc_close
  grpc_cancel grpc_send set_tick_period_milliseconds get_current_time_nanoseconds define_metric
  increment_metric record_metric get_metric set_effective_context done call_foreign_function
  continue_stream close_stream get_log_level`.split(/\s+/);

// The same file, FOR_ALL_WASI_FUNCTIONS.
const WASI = `fd_write fd_read fd_seek fd_close fd_fdstat_get environ_get environ_sizes_get args_get
  args_sizes_get clock_time_get random_get proc_exit path_open fd_prestat_get
  fd_prestat_dir_name`.split(/\s+/);

const OFFERED = new Set([
  ...PROXY.map((name) => `env.proxy_${name}`),
  ...WASI.map((name) => `wasi_snapshot_preview1.${name}`),
]);

// What Envoy calls in a filter that decides on headers, fetches and keeps time.
const NEEDED = `memory proxy_abi_version_0_2_1 proxy_on_context_create
  proxy_on_configure proxy_on_request_headers proxy_on_request_body proxy_on_request_trailers
  proxy_on_http_call_response proxy_on_tick proxy_on_delete`.split(/\s+/);

// What Envoy would call for every request, at the price of a host call each, for nothing.
const COSTLY = `proxy_on_response_headers proxy_on_response_body proxy_on_response_trailers
  proxy_on_log proxy_on_done`.split(/\s+/);

const [path, mostBytes] = argv.slice(2);
const bytes = readFileSync(path);
const module = new WebAssembly.Module(bytes);
const imports = WebAssembly.Module.imports(module).map(({ module, name }) => `${module}.${name}`);
const exports = new Set(WebAssembly.Module.exports(module).map(({ name }) => name));

const problems = [
  ...imports.filter((name) => !OFFERED.has(name)).map((name) => `imports ${name}, which Envoy does not offer`),
  ...NEEDED.filter((name) => !exports.has(name)).map((name) => `does not export ${name}`),
  ...COSTLY.filter((name) => exports.has(name)).map((name) => `exports ${name}, which costs every request`),
];
if (!exports.has('proxy_on_memory_allocate') && !exports.has('malloc')) {
  problems.push('exports neither proxy_on_memory_allocate nor malloc');
}
if (!exports.has('_initialize') && !exports.has('_start')) {
  problems.push('exports neither _initialize nor _start');
}
if (bytes.length > Number(mostBytes)) {
  problems.push(`is larger than ${mostBytes} bytes`);
}
console.log(`${path}: ${bytes.length} bytes, ${imports.length} imports, ${exports.size} exports`);
for (const problem of problems) {
  console.error(`${path} ${problem}`);
}
exit(problems.length === 0 ? 0 : 1);
