//! The proxy-wasm ABI 0.2.1, as much of it as the filter uses: the host's functions, in forms that cannot trap.
//!
//! Not by the SDK. Envoy calls what a module exports, and each call into the VM costs a request as much as a host call,
//! even one that does nothing; a module that links the SDK exports all of its callbacks, five of which a permitted GET
//! would meet in vain. The SDK also panics on header names that are not UTF-8 and on statuses that it does not
//! expect, and a panic takes a worker down.
//!
//! Here a host that answers something unexpected has not answered.

/// The level of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogLevel {
    Info = 2,
    Warn = 3,
    Error = 4,
    Critical = 5,
}

/// A map of headers or trailers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapType {
    RequestHeaders = 0,
    RequestTrailers = 1,
    CalloutHeaders = 6,
}

/// A buffer that belongs to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BufferType {
    CalloutBody = 4,
    PluginConfiguration = 7,
}

/// A kind of metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricType {
    Counter = 0,
    Gauge = 1,
    Histogram = 2,
}

/// What a callback on headers, a body or trailers answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Continue = 0,
    Pause = 1,
}

/// The host did not do it; its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed(pub(crate) u32);

/// Another one has changed the value since it was read.
pub(crate) const CAS_MISMATCH: Failed = Failed(8);

const OK: u32 = 0;

/// The stream's way from the caller to the upstream.
const REQUEST_STREAM: u32 = 0;

mod imports {
    #[link(wasm_import_module = "env")]
    unsafe extern "C" {
        pub(super) fn proxy_log(level: u32, text: *const u8, size: usize) -> u32;
        pub(super) fn proxy_get_log_level(level: *mut u32) -> u32;
        pub(super) fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
        pub(super) fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
        pub(super) fn proxy_get_buffer_bytes(
            buffer: u32,
            start: usize,
            most: usize,
            data: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub(super) fn proxy_get_header_map_pairs(
            map: u32,
            data: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub(super) fn proxy_remove_header_map_value(
            map: u32,
            name: *const u8,
            name_size: usize,
        ) -> u32;
        pub(super) fn proxy_replace_header_map_value(
            map: u32,
            name: *const u8,
            name_size: usize,
            value: *const u8,
            value_size: usize,
        ) -> u32;
        pub(super) fn proxy_get_property(
            path: *const u8,
            path_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub(super) fn proxy_set_property(
            path: *const u8,
            path_size: usize,
            value: *const u8,
            value_size: usize,
        ) -> u32;
        pub(super) fn proxy_get_shared_data(
            key: *const u8,
            key_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
            stamp: *mut u32,
        ) -> u32;
        pub(super) fn proxy_set_shared_data(
            key: *const u8,
            key_size: usize,
            value: *const u8,
            value_size: usize,
            stamp: u32,
        ) -> u32;
        pub(super) fn proxy_define_metric(
            kind: u32,
            name: *const u8,
            size: usize,
            id: *mut u32,
        ) -> u32;
        pub(super) fn proxy_get_metric(id: u32, value: *mut u64) -> u32;
        pub(super) fn proxy_increment_metric(id: u32, by: i64) -> u32;
        pub(super) fn proxy_record_metric(id: u32, value: u64) -> u32;
        pub(super) fn proxy_http_call(
            cluster: *const u8,
            cluster_size: usize,
            headers: *const u8,
            headers_size: usize,
            body: *const u8,
            body_size: usize,
            trailers: *const u8,
            trailers_size: usize,
            timeout: u32,
            token: *mut u32,
        ) -> u32;
        pub(super) fn proxy_set_effective_context(context: u32) -> u32;
        pub(super) fn proxy_continue_stream(stream: u32) -> u32;
        pub(super) fn proxy_send_local_response(
            status: u32,
            details: *const u8,
            details_size: usize,
            body: *const u8,
            body_size: usize,
            headers: *const u8,
            headers_size: usize,
            grpc_status: i32,
        ) -> u32;
        pub(super) fn proxy_call_foreign_function(
            name: *const u8,
            name_size: usize,
            arguments: *const u8,
            arguments_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
    }
}

/// Memory for what a host function returns. The host fills it before that function returns, and the function's
/// wrapper takes it back.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
    Box::into_raw(vec![0_u8; size].into_boxed_slice()).cast()
}

/// What a host function returned through `call`, which is given where to put the place and the size of it. `None` if it
/// failed or returned nothing.
fn returned(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Option<Vec<u8>> {
    let (mut data, mut size) = (std::ptr::null_mut(), 0);
    if call(&raw mut data, &raw mut size) != OK || data.is_null() {
        return None;
    }
    // SAFETY: by the ABI the host had it from `proxy_on_memory_allocate`, of this very size, and left it to us.
    Some(unsafe { Vec::from_raw_parts(data, size, size) })
}

fn done(status: u32) -> Result<(), Failed> {
    if status == OK { Ok(()) } else { Err(Failed(status)) }
}

/// A line in Envoy's log, which adds the plugin's name.
pub(crate) fn log(level: LogLevel, line: &str) -> Result<(), Failed> {
    // SAFETY: the host only reads, and only the text.
    done(unsafe { imports::proxy_log(level as u32, line.as_ptr(), line.len()) })
}

/// The number of the level from which on Envoy's log shows what the filter writes; above all levels if it is off.
pub(crate) fn log_level() -> Option<u32> {
    let mut level = 0;
    // SAFETY: the host writes one number to where it is told to; it has four bytes.
    let status = unsafe { imports::proxy_get_log_level(&raw mut level) };
    (status == OK).then_some(level)
}

/// The host's clock, in nanoseconds since the Unix epoch.
pub(crate) fn current_time() -> Option<u64> {
    let mut time = 0;
    // SAFETY: the host writes one number to where it is told to; it has eight bytes.
    let status = unsafe { imports::proxy_get_current_time_nanoseconds(&raw mut time) };
    (status == OK).then_some(time)
}

/// Asks for a tick every so many milliseconds.
pub(crate) fn set_tick_period(millis: u32) {
    // SAFETY: no pointer is handed over.
    let _ = unsafe { imports::proxy_set_tick_period_milliseconds(millis) };
}

/// The first bytes of a buffer, `most` at most.
pub(crate) fn buffer(buffer: BufferType, most: usize) -> Option<Vec<u8>> {
    returned(|data, size| {
        // SAFETY: the host writes to the two places that it is given, and nowhere else.
        unsafe { imports::proxy_get_buffer_bytes(buffer as u32, 0, most, data, size) }
    })
}

/// A whole header map, as [`crate::pairs`] reads it.
pub(crate) fn header_map(map: MapType) -> Option<Vec<u8>> {
    returned(|data, size| {
        // SAFETY: as with `buffer`.
        unsafe { imports::proxy_get_header_map_pairs(map as u32, data, size) }
    })
}

/// Removes every header of this name.
pub(crate) fn remove_header(map: MapType, name: &[u8]) {
    // SAFETY: the host only reads, and only the name.
    let _ = unsafe {
        imports::proxy_remove_header_map_value(map as u32, name.as_ptr(), name.len())
    };
}

/// Puts one header in the place of all of this name.
pub(crate) fn replace_header(map: MapType, name: &[u8], value: &[u8]) {
    // SAFETY: the host only reads, and only name and value.
    let _ = unsafe {
        imports::proxy_replace_header_map_value(
            map as u32,
            name.as_ptr(),
            name.len(),
            value.as_ptr(),
            value.len(),
        )
    };
}

/// The property of this path, whose parts have a NUL between them.
pub(crate) fn property(path: &str) -> Option<Vec<u8>> {
    returned(|data, size| {
        // SAFETY: the host reads the path, and writes to the two places that it is given.
        unsafe { imports::proxy_get_property(path.as_ptr(), path.len(), data, size) }
    })
}

/// Sets the property `name`; to Envoy it is the filter state `wasm.<name>`.
pub(crate) fn set_property(name: &str, value: &[u8]) {
    // SAFETY: the host only reads, and only name and value.
    let _ = unsafe {
        imports::proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len())
    };
}

/// What the VMs share under a key, and the stamp of its last change. What is there and empty is as good as not there.
pub(crate) fn shared_data(key: &str) -> Option<(Vec<u8>, u32)> {
    let mut stamp = 0;
    let value = returned(|data, size| {
        // SAFETY: the host reads the key, and writes to the three places that it is given.
        unsafe {
            imports::proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &raw mut stamp)
        }
    });
    Some((value?, stamp))
}

/// Sets what the VMs share under a key, if it still has the stamp; 0 is any.
pub(crate) fn set_shared_data(key: &str, value: &[u8], stamp: u32) -> Result<(), Failed> {
    // SAFETY: the host only reads, and only key and value.
    done(unsafe {
        imports::proxy_set_shared_data(
            key.as_ptr(),
            key.len(),
            value.as_ptr(),
            value.len(),
            stamp,
        )
    })
}

/// Makes a metric known; its number.
pub(crate) fn define_metric(kind: MetricType, name: &str) -> Option<u32> {
    let mut id = 0;
    // SAFETY: the host reads the name, and writes one number to where it is told to; it has four bytes.
    let status = unsafe {
        imports::proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &raw mut id)
    };
    (status == OK).then_some(id)
}

/// The value of a metric.
pub(crate) fn metric(id: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: the host writes one number to where it is told to; it has eight bytes.
    let status = unsafe { imports::proxy_get_metric(id, &raw mut value) };
    (status == OK).then_some(value)
}

/// Adds to a counter or a gauge.
pub(crate) fn increment_metric(id: u32, by: i64) {
    // SAFETY: no pointer is handed over.
    let _ = unsafe { imports::proxy_increment_metric(id, by) };
}

/// Sets a gauge, or adds a value to a histogram.
pub(crate) fn record_metric(id: u32, value: u64) {
    // SAFETY: no pointer is handed over.
    let _ = unsafe { imports::proxy_record_metric(id, value) };
}

/// Makes a callout to a cluster; its number.
pub(crate) fn http_call(
    cluster: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    timeout_millis: u32,
) -> Result<u32, Failed> {
    let headers = encoded(headers);
    let trailers = encoded(&[]);
    let mut token = 0;
    // SAFETY: the host reads what it is given, and writes one number to where it is told to; it has four bytes.
    done(unsafe {
        imports::proxy_http_call(
            cluster.as_ptr(),
            cluster.len(),
            headers.as_ptr(),
            headers.len(),
            body.as_ptr(),
            body.len(),
            trailers.as_ptr(),
            trailers.len(),
            timeout_millis,
            &raw mut token,
        )
    })
    .map(|()| token)
}

/// Makes what follows about the stream or the root of this number.
pub(crate) fn set_effective_context(context: u32) -> Result<(), Failed> {
    // SAFETY: no pointer is handed over.
    done(unsafe { imports::proxy_set_effective_context(context) })
}

/// Lets the request of the effective stream go on.
pub(crate) fn resume_request() {
    // SAFETY: no pointer is handed over.
    let _ = unsafe { imports::proxy_continue_stream(REQUEST_STREAM) };
}

/// Answers the request of the effective stream. With a gRPC status, `body` is its message.
pub(crate) fn send_local_response(
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
    grpc_status: Option<u32>,
) {
    let headers = encoded(headers);
    // −1 stands for none.
    let grpc_status = grpc_status.and_then(|status| i32::try_from(status).ok()).unwrap_or(-1);
    // SAFETY: the host only reads, and only what it is given.
    let _ = unsafe {
        imports::proxy_send_local_response(
            status.into(),
            std::ptr::null(),
            0,
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            grpc_status,
        )
    };
}

/// What a function that only this host has answers; `None` if there is none, or if it fails.
pub(crate) fn call_foreign_function(name: &str, arguments: &[u8]) -> Option<Vec<u8>> {
    returned(|data, size| {
        // SAFETY: the host reads name and arguments, and writes to the two places that it is given.
        unsafe {
            imports::proxy_call_foreign_function(
                name.as_ptr(),
                name.len(),
                arguments.as_ptr(),
                arguments.len(),
                data,
                size,
            )
        }
    })
}

/// A header map as hosts read it: the number of pairs, the lengths of each name and value, and then both with a NUL
/// behind each.
fn encoded(pairs: &[(&str, &str)]) -> Vec<u8> {
    let length = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
    let texts: usize = pairs.iter().map(|(name, value)| name.len().saturating_add(value.len())).sum();
    let room = pairs.len().saturating_mul(10).saturating_add(texts).saturating_add(4);
    let mut encoded = Vec::with_capacity(room);
    encoded.extend_from_slice(&u32::try_from(pairs.len()).unwrap_or_default().to_le_bytes());
    for (name, value) in pairs {
        encoded.extend_from_slice(&length(name));
        encoded.extend_from_slice(&length(value));
    }
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        encoded.extend_from_slice(text.as_bytes());
        encoded.push(0);
    }
    encoded
}
