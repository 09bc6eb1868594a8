//! The C border to `shim/`: owners of C++ objects and the failures that they report. The only unsafe code of this crate
//! besides one `dup` in `sockets`.

use std::ffi::{CStr, CString, c_char};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{Call, ReduceOp};

/// An exception of c10d, told by what it means.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    Peer,
    Timeout,
    Other,
}

#[repr(C)]
struct RawFailure {
    kind: i32,
    message: [c_char; 1024],
}

#[repr(C)]
struct RawStore {
    _private: [u8; 0],
}
#[repr(C)]
struct RawDevice {
    _private: [u8; 0],
}
#[repr(C)]
struct RawGroup {
    _private: [u8; 0],
}
#[repr(C)]
struct RawWork {
    _private: [u8; 0],
}

// SAFETY (of every declaration): the signatures mirror shim/shim.cpp and shim/nccl.cpp; none of them lets an exception out.
unsafe extern "C" {
    fn pleach_store_serve(
        host: *const c_char,
        port: u16,
        socket: i32,
        timeout_ms: i64,
        out: *mut *mut RawStore,
        failure: *mut RawFailure,
    ) -> bool;
    fn pleach_store_connect(
        host: *const c_char,
        port: u16,
        prefix: *const c_char,
        timeout_ms: i64,
        out: *mut *mut RawStore,
        failure: *mut RawFailure,
    ) -> bool;
    fn pleach_store_set(
        store: *mut RawStore,
        key: *const c_char,
        value: *const c_char,
        failure: *mut RawFailure,
    ) -> bool;
    fn pleach_store_count(store: *mut RawStore, key: *const c_char, value: *mut i64, failure: *mut RawFailure) -> bool;
    fn pleach_store_has(store: *mut RawStore, key: *const c_char, found: *mut bool, failure: *mut RawFailure) -> bool;
    fn pleach_store_get(
        store: *mut RawStore,
        key: *const c_char,
        value: *mut c_char,
        capacity: usize,
        failure: *mut RawFailure,
    ) -> bool;
    fn pleach_store_free(store: *mut RawStore);
    fn pleach_gloo_device(
        hostname: *const c_char,
        interface: *const c_char,
        out: *mut *mut RawDevice,
        failure: *mut RawFailure,
    ) -> bool;
    fn pleach_gloo_device_free(device: *mut RawDevice);
    fn pleach_gloo_group(
        store: *mut RawStore,
        device: *mut RawDevice,
        rank: i32,
        world: i32,
        setup_ms: i64,
        out: *mut *mut RawGroup,
        failure: *mut RawFailure,
    ) -> bool;
    fn pleach_group_limit(group: *mut RawGroup, timeout_ms: i64, failure: *mut RawFailure) -> bool;
    #[cfg(feature = "cuda")]
    fn pleach_nccl_group(
        store: *mut RawStore,
        rank: i32,
        world: i32,
        device_index: i32,
        timeout_ms: i64,
        out: *mut *mut RawGroup,
        failure: *mut RawFailure,
    ) -> bool;
    #[cfg(feature = "cuda")]
    fn pleach_group_abort(group: *mut RawGroup, failure: *mut RawFailure) -> bool;
    fn pleach_group_start(
        group: *mut RawGroup,
        call: i32,
        argument: i32,
        input: *mut C_tensor,
        output: *mut C_tensor,
        out: *mut *mut RawWork,
        failure: *mut RawFailure,
    ) -> bool;
    fn pleach_work_wait(work: *mut RawWork, slice_ms: i64, done: *mut bool, failure: *mut RawFailure) -> bool;
    fn pleach_work_free(work: *mut RawWork);
    fn pleach_group_free(group: *mut RawGroup);
    fn pleach_torch_config(text: *mut c_char, capacity: usize, failure: *mut RawFailure) -> bool;
}

type Outcome<T> = Result<T, Failure>;

/// Calls into the shim and reads the failure if there is one.
fn guarded(call: impl FnOnce(*mut RawFailure) -> bool) -> Outcome<()> {
    let mut raw = RawFailure { kind: 0, message: [0; 1024] };
    if call(&raw mut raw) {
        return Ok(());
    }
    let kind = match raw.kind {
        1 => FailureKind::Peer,
        2 => FailureKind::Timeout,
        _ => FailureKind::Other,
    };
    // c10d appends stack traces to some messages.
    let message = text_of(&raw.message).lines().next().unwrap_or_default().to_owned();
    Err(Failure { kind, message })
}

/// The text up to the first NUL.
fn text_of(buffer: &[c_char]) -> String {
    // SAFETY: the slice is readable as bytes; c_char and u8 have one layout.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), buffer.len()) };
    CStr::from_bytes_until_nul(bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

fn c_string(text: &str) -> Outcome<CString> {
    CString::new(text)
        .map_err(|_| Failure { kind: FailureKind::Other, message: format!("{text:?} contains a NUL byte") })
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX).max(1)
}

fn narrow(number: usize) -> Outcome<i32> {
    i32::try_from(number).map_err(|_| Failure { kind: FailureKind::Other, message: format!("{number} is too large") })
}

/// A c10d store, server or client.
pub(crate) struct Store(*mut RawStore);

// SAFETY: the store is reference-counted atomically and locks its connection; it is not tied to a thread.
unsafe impl Send for Store {}
// SAFETY: as above; every operation takes the store's own lock.
unsafe impl Sync for Store {}

impl Store {
    /// Serves on `socket`, bound and listening; the server owns it from now on.
    pub(crate) fn serve(host: &str, port: u16, socket: i32, timeout: Duration) -> Outcome<Self> {
        let host = c_string(host)?;
        let mut out = std::ptr::null_mut();
        // SAFETY: the strings outlive the call and `out` is written before true is returned.
        guarded(|failure| unsafe {
            pleach_store_serve(host.as_ptr(), port, socket, millis(timeout), &raw mut out, failure)
        })?;
        Ok(Self(out))
    }

    pub(crate) fn connect(host: &str, port: u16, prefix: &str, timeout: Duration) -> Outcome<Self> {
        let (host, prefix) = (c_string(host)?, c_string(prefix)?);
        let mut out = std::ptr::null_mut();
        // SAFETY: the strings outlive the call and `out` is written before true is returned.
        guarded(|failure| unsafe {
            pleach_store_connect(host.as_ptr(), port, prefix.as_ptr(), millis(timeout), &raw mut out, failure)
        })?;
        Ok(Self(out))
    }

    pub(crate) fn set(&self, key: &str, value: &str) -> Outcome<()> {
        let (key, value) = (c_string(key)?, c_string(value)?);
        // SAFETY: the store lives as long as `self`, the strings outlive the call.
        guarded(|failure| unsafe { pleach_store_set(self.0, key.as_ptr(), value.as_ptr(), failure) })
    }

    /// Adds one to a counter and says what it is then.
    pub(crate) fn count(&self, key: &str) -> Outcome<i64> {
        let key = c_string(key)?;
        let mut value = 0;
        // SAFETY: the store lives as long as `self`, the key outlives the call.
        guarded(|failure| unsafe { pleach_store_count(self.0, key.as_ptr(), &raw mut value, failure) })?;
        Ok(value)
    }

    /// Whether the key is there now.
    pub(crate) fn has(&self, key: &str) -> Outcome<bool> {
        let key = c_string(key)?;
        let mut found = false;
        // SAFETY: the store lives as long as `self`, the key outlives the call.
        guarded(|failure| unsafe { pleach_store_has(self.0, key.as_ptr(), &raw mut found, failure) })?;
        Ok(found)
    }

    /// Waits for the key; values are short.
    pub(crate) fn get(&self, key: &str) -> Outcome<String> {
        let key = c_string(key)?;
        let mut value: [c_char; 256] = [0; 256];
        // SAFETY: the store lives as long as `self`; at most `value.len()` bytes are written, the last one NUL.
        guarded(|failure| unsafe { pleach_store_get(self.0, key.as_ptr(), value.as_mut_ptr(), value.len(), failure) })?;
        Ok(text_of(&value))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once.
        unsafe { pleach_store_free(self.0) }
    }
}

/// Gloo's transport of one rank: it listens while it lives.
pub(crate) struct Transport(*mut RawDevice);

impl Transport {
    /// Bound to `hostname`, or to `interface` when `hostname` is empty.
    pub(crate) fn open(hostname: &str, interface: &str) -> Outcome<Self> {
        let (hostname, interface) = (c_string(hostname)?, c_string(interface)?);
        let mut out = std::ptr::null_mut();
        // SAFETY: the strings outlive the call and `out` is written before true is returned.
        guarded(|failure| unsafe { pleach_gloo_device(hostname.as_ptr(), interface.as_ptr(), &raw mut out, failure) })?;
        Ok(Self(out))
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once; the group holds its own reference.
        unsafe { pleach_gloo_device_free(self.0) }
    }
}

/// A c10d process group of this rank, and whether a call was left behind in it.
pub(crate) struct Backend(*mut RawGroup, AtomicBool);

// SAFETY: a process group may be used from any thread, by one at a time; `Group` is not Sync and takes care of that.
// NCCL's abort alone is called from other threads, which c10d allows.
unsafe impl Send for Backend {}
#[cfg(feature = "cuda")]
// SAFETY: shared only with the abort handle, see above.
unsafe impl Sync for Backend {}

impl Backend {
    pub(crate) fn gloo(
        store: &Store,
        transport: &Transport,
        (rank, world): (usize, usize),
        setup: Duration,
    ) -> Outcome<Self> {
        let (rank, world) = (narrow(rank)?, narrow(world)?);
        let mut out = std::ptr::null_mut();
        // SAFETY: store and transport live through the call, the group takes references of its own.
        guarded(|failure| unsafe {
            pleach_gloo_group(store.0, transport.0, rank, world, millis(setup), &raw mut out, failure)
        })?;
        Ok(Self(out, AtomicBool::new(false)))
    }

    /// How long every later call may take.
    pub(crate) fn limit(&mut self, timeout: Duration) -> Outcome<()> {
        // SAFETY: the group lives as long as `self`, and no call is under way since calls borrow it.
        guarded(|failure| unsafe { pleach_group_limit(self.0, millis(timeout), failure) })
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn nccl(
        store: &Store,
        (rank, world): (usize, usize),
        device: usize,
        timeout: Duration,
    ) -> Outcome<Self> {
        let (rank, world, device) = (narrow(rank)?, narrow(world)?, narrow(device)?);
        let mut out = std::ptr::null_mut();
        // SAFETY: the store lives through the call, the group takes a reference of its own.
        guarded(|failure| unsafe {
            pleach_nccl_group(store.0, rank, world, device, millis(timeout), &raw mut out, failure)
        })?;
        Ok(Self(out, AtomicBool::new(false)))
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn abort(&self) -> Outcome<()> {
        // SAFETY: the group lives as long as `self`; c10d allows abort from any thread.
        guarded(|failure| unsafe { pleach_group_abort(self.0, failure) })
    }

    /// Runs one call to its end. In-place calls change `output` and ignore `input`. While it is under way, `watch` is
    /// asked every [`SLICE`]; it may end the wait by closing connections, and when even that does not end the call, by
    /// saying true: the call is then left behind. Gloo misses a connection that closes at the wrong moment, and would
    /// wait for the whole timeout.
    pub(crate) fn run(
        &self,
        call: Call,
        input: &Tensor,
        output: &Tensor,
        mut watch: impl FnMut() -> bool,
    ) -> Outcome<()> {
        let (code, argument) = encode(call)?;
        // c10d compares shapes of pieces with shapes of wholes in some calls; flat, they always fit.
        let (input, output) = (input.view([-1]), output.view([-1]));
        let (input, output) = (input.as_ptr().cast_mut(), output.as_ptr().cast_mut());
        let mut work = Work(std::ptr::null_mut());
        // SAFETY: both point to at::Tensor handles that live through this function, and the shim changes the data of
        // `output`, never the handles. A call that is left behind holds references of its own to both tensors; its
        // connections are closed, so that nothing arrives any more that could be written to them.
        guarded(|failure| unsafe {
            pleach_group_start(self.0, code, argument, input, output, &raw mut work.0, failure)
        })?;
        loop {
            let mut done = false;
            // SAFETY: the work was made by the call above and is freed when this function returns.
            guarded(|failure| unsafe { pleach_work_wait(work.0, millis(SLICE), &raw mut done, failure) })?;
            if done {
                return Ok(());
            }
            if watch() {
                self.1.store(true, Ordering::SeqCst);
                let message = "the connections are closed, and the call does not end".to_owned();
                return Err(Failure { kind: FailureKind::Peer, message });
            }
        }
    }
}

/// How long a wait goes on before it looks around.
pub(crate) const SLICE: Duration = Duration::from_millis(100);

struct Work(*mut RawWork);

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: null, or made by the shim and freed once.
        unsafe { pleach_work_free(self.0) }
    }
}

/// What is freed on a thread of its own.
struct Grave(*mut RawGroup);

// SAFETY: as `Backend`: a process group may be used, and freed, from any thread.
unsafe impl Send for Grave {}

impl Grave {
    fn fill(self) {
        // SAFETY: made by the shim, freed once; c10d waits here for the call that was left behind.
        unsafe { pleach_group_free(self.0) }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let grave = Grave(self.0);
        if !*self.1.get_mut() {
            return grave.fill();
        }
        // The call ends at its timeout at the latest. Without a thread to wait for it, the group is kept for ever.
        let _ = std::thread::Builder::new().name("grave".to_owned()).spawn(move || grave.fill());
    }
}

/// The numbers of `PleachCall` and of c10d's reductions.
fn encode(call: Call) -> Outcome<(i32, i32)> {
    let reduction = |op| match op {
        ReduceOp::Sum => 0,
        ReduceOp::Min => 3,
        ReduceOp::Max => 4,
    };
    Ok(match call {
        Call::AllReduce(op) => (0, reduction(op)),
        Call::AllGather => (1, 0),
        Call::Broadcast(root) => (2, narrow(root)?),
        Call::ReduceScatter(op) => (3, reduction(op)),
        Call::AllToAll => (4, 0),
        Call::Barrier => (5, 0),
    })
}

/// The build settings that the loaded libtorch reports.
pub(crate) fn torch_config() -> Outcome<String> {
    let mut text = vec![0; 16 * 1024];
    // SAFETY: at most `text.len()` bytes are written, the last one NUL.
    guarded(|failure| unsafe { pleach_torch_config(text.as_mut_ptr(), text.len(), failure) })?;
    Ok(text_of(&text))
}
