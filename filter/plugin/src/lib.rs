//! Airflow Envoy as a proxy-wasm HTTP filter.
//!
//! It translates: host calls become events of the core's gate, and the gate's verdicts and effects
//! become host calls. What it is not: a place where anything is decided.

mod crypto;
mod host;
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
