//! The host calls that a request meets, straight by the proxy-wasm ABI 0.2.1 and in forms that cannot trap.
//!
//! The SDK's forms of them copy each header into memory of its own, put the path of each property together anew,
//! and panic on header names that are not UTF-8 and on statuses that they do not expect. Here a host that answers
//! something unexpected has not answered. What is not on the way of a request goes by the SDK.

use proxy_wasm::types::MapType;

const OK: u32 = 0;

mod imports {
    #[link(wasm_import_module = "env")]
    unsafe extern "C" {
        pub(super) fn proxy_get_log_level(level: *mut u32) -> u32;
        pub(super) fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
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
        pub(super) fn proxy_get_metric(id: u32, value: *mut u64) -> u32;
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

/// A whole header map, as `crate::pairs` reads it.
pub(crate) fn header_map(map: MapType) -> Option<Vec<u8>> {
    returned(|data, size| {
        // SAFETY: the host writes to the two places that it is given, and nowhere else.
        unsafe { imports::proxy_get_header_map_pairs(map as u32, data, size) }
    })
}

/// Removes every header of this name.
pub(crate) fn remove_header(map: MapType, name: &[u8]) {
    // SAFETY: the host only reads, and only the name.
    let _ =
        unsafe { imports::proxy_remove_header_map_value(map as u32, name.as_ptr(), name.len()) };
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

/// Answers the request of the effective stream. The headers as `crate::pairs` encodes them, the body as it is; with
/// a `grpc_status` the body is its message, and the HTTP status does not matter.
pub(crate) fn send_local_response(
    status: u16,
    headers: &[u8],
    body: &[u8],
    grpc_status: Option<u32>,
) {
    // A negative one is none.
    let grpc_status = grpc_status.and_then(|status| i32::try_from(status).ok()).unwrap_or(-1);
    // SAFETY: the host only reads, and only headers and body; of the details there is nothing to read.
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

/// The value of a metric.
pub(crate) fn metric(id: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: the host writes one number to where it is told to; it has eight bytes.
    let status = unsafe { imports::proxy_get_metric(id, &raw mut value) };
    (status == OK).then_some(value)
}

/// What a function of the host returned that the ABI does not know by name.
pub(crate) fn call_foreign_function(name: &str, arguments: &[u8]) -> Option<Vec<u8>> {
    returned(|data, size| {
        // SAFETY: the host only reads name and arguments, and writes to the two places that it is given.
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
