;; What the filter asks of the host for any request, and no more: its three callbacks, all headers at once, the clock.
;; It lets every request pass, and traps if the host would not let it read.
(module
  (import "env" "proxy_get_header_map_pairs" (func $pairs (param i32 i32 i32) (result i32)))
  (import "env" "proxy_get_current_time_nanoseconds" (func $clock (param i32) (result i32)))
  ;; The first page for what calls return, the others for a header map, whose size Envoy bounds to 60 KiB.
  (memory (export "memory") 4)
  (func (export "_initialize"))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (if (call $pairs (i32.const 0) (i32.const 16) (i32.const 20)) (then unreachable))
    (if (i32.eqz (i32.load (i32.const 20))) (then unreachable))
    (if (call $clock (i32.const 24)) (then unreachable))
    (i32.const 0))
  (func (export "proxy_on_delete") (param i32)))
