//! Airflow Envoy as a proxy-wasm HTTP filter.
//!
//! It translates: host calls become events of the core's gate, and the gate's verdicts and effects
//! become host calls. What it is not: a place where anything is decided.
//!
//! Envoy calls what a module exports, and each such call costs a request as much as a host call, even one that does
//! nothing. The SDK exports all of its callbacks, so those that do nothing here are taken out of the module when it is built
//! (`scripts/exports.json`); `proxy_on_done` is among them. What is to be done when a stream or a filter instance
//! ends is done when its context is dropped: in `proxy_on_delete`, where Envoy still knows what the caller got. The
//! module is the same filter with them and without.

mod abi;
mod crypto;
mod host;
mod pairs;
mod root;
mod stream;

/// What Envoy calls first.
mod entry {
    use proxy_wasm::types::LogLevel;

    use crate::root::Root;

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|id| Box::new(Root::new(id)));
    }}
}
