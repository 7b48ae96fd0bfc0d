//! The host's buffers, for zeno.rs: memory that calls only refer to, so that nobody copies it.
//!
//! Copy this file beside zeno.rs, which declares it as a module and whose link has the methods.
//! Elsewhere than on Linux they find nothing.

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io;
use std::mem;
use std::os::raw::{c_int, c_short, c_ulong, c_void};
use std::os::unix::io::{AsRawFd, FromRawFd};
use std::ptr;
use std::time::{Duration, Instant};

use super::{Link, Mapping};

/// How long a buffer may be on its way; the host sends it before it refers to it.
const WAIT: Duration = Duration::from_secs(1);

impl Link {
    /// Whether the host may send buffers of its own: then "buffers" belongs among the features.
    pub fn offers_buffers(&self) -> bool {
        self.offers_arena() && self.buffers.socket.is_some()
    }

    /// The bytes that a request means by `{"$bytes":[offset,nbytes,id]}`, or None.
    ///
    /// They may be read and written until that request is answered, and be answered with in the
    /// same words.
    pub fn buffer_bytes(&mut self, id: u64, offset: u64, nbytes: u64) -> Option<&mut [u8]> {
        self.buffers.find(id)?.as_mut()?.slice(offset, nbytes)
    }

    /// Let go of a buffer: the host says so by `{"type":"forget_buffers","buffers":[id,...]}`.
    pub fn forget_buffer(&mut self, id: u64) {
        self.buffers.find(id); // it may not have been taken yet
        self.buffers.given.remove(&id);
    }
}

/// What the host has given us, and the socket through which it gives more.
pub(super) struct Buffers {
    socket: Option<c_int>,
    /// None for one that could not be mapped, so that nobody waits for it again.
    given: HashMap<u64, Option<Mapping>>,
}

impl Buffers {
    /// Take up what the host offers in ZENO_BUFFERS.
    pub(super) fn open() -> Buffers {
        let socket = env::var("ZENO_BUFFERS")
            .ok()
            .and_then(|value| value.parse().ok());
        Buffers {
            socket: socket.filter(|&fd: &c_int| cfg!(target_os = "linux") && fd >= 0),
            given: HashMap::new(),
        }
    }

    fn find(&mut self, id: u64) -> Option<&mut Option<Mapping>> {
        while !self.given.contains_key(&id) {
            self.take()?;
        }
        self.given.get_mut(&id)
    }

    /// Take what the host has sent next; None where nothing has come in time.
    fn take(&mut self) -> Option<()> {
        let (about, file) = receive(self.socket?)?;
        if let (Some([id, size]), Some(file)) = (about, file) {
            // One without bytes is made of one byte, as nothing can be mapped without any.
            let size = usize::try_from(size.max(1)).ok();
            let mapping = size.and_then(|size| Mapping::of(file.as_raw_fd(), size));
            self.given.insert(id, mapping);
        }
        Some(())
    }
}

/// Wait for a message: the numbers in it, if it is two of them, and the file that came with it.
fn receive(socket: c_int) -> Option<(Option<[u64; 2]>, Option<File>)> {
    if !is_ready(socket) {
        return None;
    }
    let mut about = [0u64; 2];
    let mut control = Control {
        size: 0,
        level: 0,
        kind: 0,
        fd: -1,
    };
    let mut part = Part {
        base: about.as_mut_ptr() as *mut c_void,
        size: mem::size_of_val(&about),
    };
    let mut message = Message {
        name: ptr::null_mut(),
        name_size: 0,
        parts: &mut part,
        part_count: 1,
        control: &mut control as *mut Control as *mut c_void,
        control_size: CONTROL_SIZE,
        flags: 0,
    };
    // SAFETY: all that the message points to outlives the call, and is as large as it says.
    let count = unsafe { recvmsg(socket, &mut message, AT_ONCE | CLOSE_ON_EXEC) };
    let is_file = message.control_size >= CONTROL_SIZE && control.kind == FILES && control.fd >= 0;
    // SAFETY: the system has just made it for us, and nobody else knows of it.
    let file = is_file.then(|| unsafe { File::from_raw_fd(control.fd) });
    if count <= 0 {
        return None; // the host has gone
    }
    let is_whole = count as usize == mem::size_of_val(&about);
    Some((is_whole.then(|| about.map(u64::from_le)), file))
}

/// Wait until something can be received; whether it can.
fn is_ready(socket: c_int) -> bool {
    let until = Instant::now() + WAIT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut waits = Waits {
            fd: socket,
            events: READABLE,
            happened: 0,
        };
        // SAFETY: it is one, as is said.
        let count = unsafe { poll(&mut waits, 1, left.as_millis() as c_int) };
        let interrupted = io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        if count >= 0 || !interrupted || left.is_zero() {
            return count > 0;
        }
    }
}

// What follows is as Linux has it.

const READABLE: c_short = 1;
const AT_ONCE: c_int = 0x40;
const CLOSE_ON_EXEC: c_int = 0x4000_0000;
const FILES: c_int = 1;
/// Room for one descriptor, without what pads it: a second one would fit there and stay open.
const CONTROL_SIZE: usize = mem::size_of::<usize>() + 3 * mem::size_of::<c_int>();

#[repr(C)]
struct Waits {
    fd: c_int,
    events: c_short,
    happened: c_short,
}

#[repr(C)]
struct Part {
    base: *mut c_void,
    size: usize,
}

#[repr(C)]
struct Control {
    size: usize,
    level: c_int,
    kind: c_int,
    fd: c_int,
}

#[repr(C)]
struct Message {
    name: *mut c_void,
    name_size: u32,
    parts: *mut Part,
    part_count: usize,
    control: *mut c_void,
    control_size: usize,
    flags: c_int,
}

extern "C" {
    fn poll(waits: *mut Waits, count: c_ulong, milliseconds: c_int) -> c_int;
    fn recvmsg(socket: c_int, message: *mut Message, flags: c_int) -> isize;
}
