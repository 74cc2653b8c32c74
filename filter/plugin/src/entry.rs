//! What Envoy calls: the callbacks of the proxy-wasm ABI, and the contexts that they are about.
//!
//! Only callbacks that have something to do are exported, since Envoy pays for each. `proxy_on_done` is the one end of a
//! stream and of a root: after it Envoy calls `proxy_on_delete` at once if there is one, and never anything else, so what
//! is kept of a stream goes there. Where it stands Envoy still knows what the caller got.
//!
//! Numbers that are not known, or known already, are the host's mistakes: of them nothing goes on.

use std::cell::RefCell;

use rustc_hash::FxHashMap;

use crate::abi::{Action, LogLevel};
use crate::host;
use crate::root::Root;
use crate::stream::Stream;

/// What lives in the VM: the filter instances, and their requests under way.
struct Contexts {
    /// By their numbers. Instances with one `vm_id` share a VM.
    roots: Vec<(u32, Root)>,
    /// By their numbers.
    streams: Option<FxHashMap<u32, Stream>>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> =
        const { RefCell::new(Contexts { roots: Vec::new(), streams: None }) };
}

impl Contexts {
    fn root(&mut self, id: u32) -> Option<&mut Root> {
        self.roots.iter_mut().find(|(known, _)| *known == id).map(|(_, root)| root)
    }

    fn stream(&mut self, id: u32) -> Option<&mut Stream> {
        self.streams.as_mut()?.get_mut(&id)
    }

    fn create(&mut self, id: u32, parent: u32) {
        if parent == 0 {
            if self.root(id).is_none() {
                self.roots.push((id, Root::new(id)));
            }
            return;
        }
        let stream = self.root(parent).map(|root| root.stream(id));
        let streams = self.streams.get_or_insert_default();
        match stream {
            Some(stream) => _ = streams.insert(id, stream),
            // One of nobody is refused.
            None => _ = streams.remove(&id),
        }
    }
}

/// Acts on the contexts; `otherwise` if they are being acted on, which the host has no way to cause.
fn with<T>(otherwise: T, act: impl FnOnce(&mut Contexts) -> T) -> T {
    CONTEXTS.with(|contexts| match contexts.try_borrow_mut() {
        Ok(mut contexts) => act(&mut contexts),
        Err(_) => otherwise,
    })
}

/// Refuses a request of which nothing is known.
fn refuse() -> u32 {
    host::log(LogLevel::Critical, "a request came that belongs to no filter");
    crate::stream::unavailable();
    Action::Pause as u32
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    #[cfg(target_os = "wasi")]
    {
        unsafe extern "C" {
            fn __wasm_call_ctors();
        }
        // SAFETY: the host calls `_initialize` once and before all else; these are the linker's.
        unsafe { __wasm_call_ctors() };
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(context: u32, parent: u32) {
    with((), |contexts| contexts.create(context, parent));
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(context: u32, _: usize) -> u32 {
    let accepted =
        with(false, |contexts| contexts.root(context).is_some_and(|root| root.configure()));
    u32::from(accepted)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_tick(context: u32) {
    with((), |contexts| {
        if let Some(root) = contexts.root(context) {
            root.tick();
        }
    });
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_http_call_response(
    context: u32,
    token: u32,
    headers: usize,
    body: usize,
    _: usize,
) {
    with((), |contexts| {
        if let Some(root) = contexts.root(context) {
            root.answered(token, headers, body);
        }
    });
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(context: u32, _: usize, _: u32) -> u32 {
    with(None, |contexts| Some(contexts.stream(context)?.request_headers() as u32))
        .unwrap_or_else(refuse)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_body(context: u32, _: usize, _: u32) -> u32 {
    with(Action::Pause, |contexts| {
        contexts.stream(context).map_or(Action::Pause, |stream| stream.after_headers())
    }) as u32
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_trailers(context: u32, _: usize) -> u32 {
    with(Action::Pause, |contexts| {
        contexts.stream(context).map_or(Action::Pause, |stream| stream.request_trailers())
    }) as u32
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_done(context: u32) -> u32 {
    with((), |contexts| {
        if let Some(stream) = contexts.streams.as_mut().and_then(|known| known.remove(&context)) {
            stream.done();
        } else if let Some(place) = contexts.roots.iter().position(|(known, _)| *known == context) {
            let (_, mut root) = contexts.roots.swap_remove(place);
            root.done();
        }
    });
    // Nothing is left that Envoy would have to wait for.
    u32::from(true)
}
