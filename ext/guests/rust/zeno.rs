//! How a sidecar in Rust hears its host and answers: lines, or shared memory.
//!
//! Copy this file and zeno_buffers.rs into one folder of a crate and write `mod zeno;`. They need
//! nothing but std, Rust 1.63 or newer, and a 64-bit Unix. In edition 2024 an `extern "C"` block
//! has to be `unsafe extern "C"`.
//!
//! ```ignore
//! let mut link = zeno::Link::open(); // before anything is read or printed
//! let mut buffer = Vec::new();
//! while let Some(message) = link.receive(&mut buffer) {
//!     // decode the message, which is one JSON object, and answer it
//!     link.send(answer)?;
//!     // after the answer to plugin_init that had "shm" among its features:
//!     link.use_ring();
//! }
//! ```
//!
//! The messages are in docs/protocol.md, the layout of the memory is in zeno_shm.h and zeno_ring.h;
//! zeno_guest.h does the same in C. One thread uses a link at a time. What is printed to stdout is
//! logged by the host as ever.

#![allow(dead_code)] // no guest needs all of it

use std::env;
use std::fs::File;
use std::hint;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::mem::ManuallyDrop;
use std::os::raw::{c_int, c_void};
use std::os::unix::io::FromRawFd;
use std::ptr;
use std::slice;
use std::sync::atomic::{fence, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[path = "zeno_buffers.rs"] // where it lies beside this file, whatever this one is called
mod buffers;

const VERSION: u32 = 1;
const TO_GUEST: usize = 256; // the control blocks of the two rings
const TO_HOST: usize = 512;
const RINGS: usize = 4096; // where their data begins
const MIN_RING: usize = 4096;
const MAX_RING: usize = 1 << 30;
const BLOCK_HEADER: usize = 64;

const HEAD: usize = 0; // offsets in a control block
const READER_SLEEPS: usize = 8;
const TAIL: usize = 128;
const WRITER_SLEEPS: usize = 136;
const RECORD_HEADER: u64 = 8;
const MORE: u32 = 1;

const PAUSES: u32 = 60;
const SPIN: Duration = Duration::from_micros(30);
const MISSES: u32 = 3;
/// What giving up the processor takes where others want it.
const BUSY: Duration = Duration::from_micros(8);

/// The ring holds what cannot be; it is of no use any more.
struct Corrupt;

/// A sidecar's end of the way to its host.
pub struct Link {
    segment: Option<Segment>,
    host_arena: Option<Mapping>,
    own_arena: Arena,
    buffers: buffers::Buffers,
    ring: Option<Ring>,
    input: BufReader<Descriptor>,
    output: Descriptor,
    patience: Patience,
}

impl Link {
    /// Take up what the host offers in its variables; lines where that is nothing.
    pub fn open() -> Link {
        Link {
            segment: env::var("ZENO_SHM")
                .ok()
                .and_then(|value| Segment::attach(&value)),
            host_arena: env::var("ZENO_ARENA")
                .ok()
                .and_then(|value| Mapping::attach(&value)),
            own_arena: Arena { blocks: Vec::new() },
            buffers: buffers::Buffers::open(),
            ring: None,
            input: BufReader::with_capacity(65536, Descriptor::new(0)),
            output: Descriptor::new(1),
            patience: Patience { misses: 0, skip: 0 },
        }
    }

    /// Whether the host shares memory with this process: then "shm" may stand among the features.
    pub fn offers_ring(&self) -> bool {
        self.segment.is_some()
    }

    /// Send and receive through shared memory from now on.
    ///
    /// Call it right after the answer to `plugin_init` that had "shm" among its `features`; later
    /// calls do nothing.
    pub fn use_ring(&mut self) {
        if self.ring.is_some() {
            return;
        }
        self.ring = self.segment.as_ref().and_then(Ring::open);
        if self.ring.is_some() {
            let left = self.input.buffer().len();
            self.input.consume(left); // a line more would be one that nobody sends
        }
    }

    /// Whether messages go through shared memory.
    pub fn uses_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// Wait for the next message; None once there will be no more.
    ///
    /// It is put into `buffer`, whose memory is used again and again, and what was there goes.
    pub fn receive<'m>(&mut self, buffer: &'m mut Vec<u8>) -> Option<&'m [u8]> {
        buffer.clear();
        let came = if self.ring.is_some() {
            self.receive_record(buffer)
        } else {
            self.receive_line(buffer)
        };
        came?;
        Some(buffer)
    }

    /// Send one message, without a line end and without one inside.
    ///
    /// Waits while the host reads what was sent before. An error means that the host has gone.
    pub fn send(&mut self, message: &[u8]) -> io::Result<()> {
        if self.ring.is_some() {
            return self.send_record(message);
        }
        self.output.write_all(message)?;
        self.output.write_all(b"\n")
    }

    /// Whether bytes may go through shared memory: then "arena" belongs among the features.
    pub fn offers_arena(&self) -> bool {
        self.segment.is_some() && self.host_arena.is_some()
    }

    /// The bytes that a request means by `{"$bytes":[offset,nbytes]}`; None where there are none.
    ///
    /// They are the guest's to read and to write until it has answered that request.
    pub fn bytes(&mut self, offset: u64, nbytes: u64) -> Option<&mut [u8]> {
        self.host_arena.as_mut()?.slice(offset, nbytes)
    }

    /// Take room for bytes to answer with: its offset, and the bytes, of whatever values.
    ///
    /// Write them, and send `{"$bytes":[offset,nbytes]}`, with `"binary":true` beside `data`. None
    /// where there is no room: send base64 then.
    pub fn new_bytes(&mut self, nbytes: u64) -> Option<(u64, &mut [u8])> {
        self.host_arena.as_ref()?;
        self.own_arena.take(self.segment.as_mut()?, nbytes)
    }

    /// `bytes(offset, nbytes)` and `new_bytes(room)` at once, to make an answer from what was sent.
    pub fn bytes_and_new(
        &mut self,
        offset: u64,
        nbytes: u64,
        room: u64,
    ) -> Option<(&mut [u8], u64, &mut [u8])> {
        let sent = self.host_arena.as_mut()?.slice(offset, nbytes)?;
        let (place, new) = self.own_arena.take(self.segment.as_mut()?, room)?;
        Some((sent, place, new))
    }

    /// Take bytes back that were not sent.
    pub fn drop_bytes(&mut self, offset: u64) {
        if let Some(segment) = &self.segment {
            self.own_arena.give_back(segment, offset);
        }
    }

    fn receive_line(&mut self, buffer: &mut Vec<u8>) -> Option<()> {
        loop {
            self.input.read_until(b'\n', buffer).ok()?;
            match buffer.pop() {
                Some(b'\n') if buffer.is_empty() => continue,
                Some(b'\n') => return Some(()),
                _ => return None, // the end, perhaps in the middle of a line
            }
        }
    }

    fn receive_record(&mut self, buffer: &mut Vec<u8>) -> Option<()> {
        let memory = &self.segment.as_ref()?.memory;
        let reader = &mut self.ring.as_mut()?.reader;
        loop {
            if let Some((nbytes, flags)) = reader.next(memory).ok()? {
                reader.take(memory, nbytes, buffer);
                if reader.head == reader.tail && reader.must_wake_writer(memory) {
                    // Where the host has gone, the next sleep ends at once.
                    let _ = self.output.write_all(b"\n");
                }
                if flags & MORE == 0 {
                    return Some(());
                }
            } else if !self.patience.spin(|| reader.is_ready(memory)) && reader.may_sleep(memory) {
                let woken = sleep(self.input.get_mut());
                reader.awake(memory);
                if !woken && !reader.is_ready(memory) {
                    return None;
                }
            }
        }
    }

    fn send_record(&mut self, message: &[u8]) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let corrupt = |_: Corrupt| io::Error::from(io::ErrorKind::InvalidData);
        let memory = &self.segment.as_ref().ok_or_else(gone)?.memory;
        let writer = &mut self.ring.as_mut().ok_or_else(gone)?.writer;
        let mut rest = message;
        loop {
            let pushed = writer.push_some(memory, rest).map_err(corrupt)?;
            if writer.must_wake_reader(memory) {
                self.output.write_all(b"\n")?;
            }
            match pushed {
                Some(nbytes) if nbytes == rest.len() => return Ok(()),
                Some(nbytes) => rest = &rest[nbytes..],
                None => {
                    let wanted = writer.wanted(rest.len());
                    if !writer.spin_for_room(memory, wanted).map_err(corrupt)?
                        && writer.may_sleep(memory, wanted).map_err(corrupt)?
                        && !sleep(self.input.get_mut())
                    {
                        return Err(gone());
                    }
                }
            }
        }
    }
}

/// Sleep until the host has something to say; false once it has gone. The bytes only wake us.
fn sleep(input: &mut Descriptor) -> bool {
    let mut bytes = [0; 256];
    loop {
        match input.read(&mut bytes) {
            Ok(count) => return count > 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return false,
        }
    }
}

/// How long it is worth while to wait awake.
struct Patience {
    misses: u32,
    skip: u32,
}

impl Patience {
    /// Wait awake for a moment; whether it came.
    ///
    /// Where that is in vain several times in a row, as on a busy machine or with a host that calls
    /// seldom, it is left out for longer and longer.
    fn spin(&mut self, is_ready: impl Fn() -> bool) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        for _ in 0..PAUSES {
            if is_ready() {
                self.misses = 0;
                return true;
            }
            hint::spin_loop();
        }
        let begin = Instant::now();
        let mut before = Duration::ZERO;
        loop {
            thread::yield_now();
            if is_ready() {
                self.misses = 0;
                return true;
            }
            let elapsed = begin.elapsed();
            if elapsed >= SPIN || elapsed - before > BUSY {
                break;
            }
            before = elapsed;
        }
        self.misses += 1;
        if self.misses >= MISSES {
            self.skip = 1 << self.misses.min(6);
            self.misses = self.misses.min(6);
        }
        false
    }
}

/// One of the standard streams, without a buffer; it stays open when this goes.
struct Descriptor(ManuallyDrop<File>);

impl Descriptor {
    fn new(number: c_int) -> Descriptor {
        // SAFETY: the streams 0 and 1 are open for the life of the process, and never closed by us.
        Descriptor(ManuallyDrop::new(unsafe { File::from_raw_fd(number) }))
    }
}

impl Read for Descriptor {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.0.read(to)
    }
}

impl Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// ---- the rings ---------------------------------------------------------------------------------

struct Ring {
    reader: Reader,
    writer: Writer,
}

impl Ring {
    fn open(segment: &Segment) -> Option<Ring> {
        let (memory, size) = (&segment.memory, segment.ring_size);
        let reader = Reader::open(memory, TO_GUEST, RINGS, size)?;
        let writer = Writer::open(memory, TO_HOST, RINGS + size, size)?;
        Some(Ring { reader, writer })
    }
}

/// Bytes of the ring that a record of this many takes.
fn span(nbytes: u64) -> u64 {
    RECORD_HEADER + ((nbytes + 7) & !7)
}

/// The end of a ring that writes; `tail` is as last seen.
struct Writer {
    control: usize,
    data: usize,
    size: u64,
    head: u64,
    tail: u64,
}

impl Writer {
    fn open(memory: &Mapping, control: usize, data: usize, size: usize) -> Option<Writer> {
        let head = memory.u64_at(control + HEAD).load(Ordering::Acquire);
        let tail = memory.u64_at(control + TAIL).load(Ordering::Acquire);
        let size = size as u64;
        if (head | tail) & 7 != 0 || head.wrapping_sub(tail) > size {
            return None;
        }
        Some(Writer {
            control,
            data,
            size,
            head,
            tail,
        })
    }

    /// Have this many bytes free; returns how many are.
    fn room(&mut self, memory: &Mapping, wanted: u64) -> Result<u64, Corrupt> {
        if self.size - self.head.wrapping_sub(self.tail) < wanted {
            let tail = memory.u64_at(self.control + TAIL).load(Ordering::Acquire);
            if self.head.wrapping_sub(tail) > self.size || tail & 7 != 0 {
                return Err(Corrupt);
            }
            self.tail = tail;
        }
        Ok(self.size - self.head.wrapping_sub(self.tail))
    }

    /// How much has to be free for `push_some` of this many bytes to go on.
    fn wanted(&self, nbytes: usize) -> u64 {
        span(nbytes as u64).min(self.size / 4)
    }

    /// Write as much of a message as there is room for; how many bytes that were, None where the
    /// ring is full.
    fn push_some(&mut self, memory: &Mapping, bytes: &[u8]) -> Result<Option<usize>, Corrupt> {
        let needed = span(bytes.len() as u64);
        let room = self.room(memory, needed.min(self.size))?;
        if room >= needed {
            self.put(memory, bytes, 0);
            return Ok(Some(bytes.len()));
        }
        if room < self.wanted(bytes.len()) {
            return Ok(None);
        }
        // Still a multiple of 8, and below the length, for the whole did not fit.
        let count = (room - RECORD_HEADER) as usize;
        self.put(memory, &bytes[..count], MORE);
        Ok(Some(count))
    }

    /// Write a record for which there is room, and publish it.
    fn put(&mut self, memory: &Mapping, bytes: &[u8], flags: u32) {
        let mask = self.size - 1;
        let at = (self.head & mask) as usize;
        memory.write(self.data + at, &(bytes.len() as u32).to_le_bytes());
        memory.write(self.data + at + 4, &flags.to_le_bytes());
        let at = (self.head.wrapping_add(RECORD_HEADER) & mask) as usize;
        let (first, others) = bytes.split_at(bytes.len().min(self.size as usize - at));
        memory.write(self.data + at, first);
        memory.write(self.data, others);
        self.head = self.head.wrapping_add(span(bytes.len() as u64));
        memory
            .u64_at(self.control + HEAD)
            .store(self.head, Ordering::Release);
    }

    /// After a record: whether the reader has to be woken. It does not sleep for the ring then.
    fn must_wake_reader(&self, memory: &Mapping) -> bool {
        fence(Ordering::SeqCst);
        memory.take_flag(self.control + READER_SLEEPS)
    }

    /// Wait awake for a moment until the host has read; whether there is room.
    fn spin_for_room(&mut self, memory: &Mapping, wanted: u64) -> Result<bool, Corrupt> {
        let begin = Instant::now();
        while self.room(memory, wanted)? < wanted {
            if begin.elapsed() > SPIN {
                return Ok(false);
            }
            thread::yield_now();
        }
        Ok(true)
    }

    /// Say that this side sleeps for room, and look again; whether it may.
    fn may_sleep(&mut self, memory: &Mapping, wanted: u64) -> Result<bool, Corrupt> {
        let flag = memory.u32_at(self.control + WRITER_SLEEPS);
        flag.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let room = self.room(memory, wanted);
        if !matches!(room, Ok(nbytes) if nbytes < wanted) {
            flag.store(0, Ordering::Relaxed);
        }
        Ok(room? < wanted)
    }
}

/// The end of a ring that reads; `head` is as last seen.
struct Reader {
    control: usize,
    data: usize,
    size: u64,
    head: u64,
    tail: u64,
}

impl Reader {
    fn open(memory: &Mapping, control: usize, data: usize, size: usize) -> Option<Reader> {
        let tail = memory.u64_at(control + TAIL).load(Ordering::Acquire);
        if tail & 7 != 0 {
            return None;
        }
        Some(Reader {
            control,
            data,
            size: size as u64,
            head: tail,
            tail,
        })
    }

    /// The length and the flags of the next record, which stays; None where there is none.
    fn next(&mut self, memory: &Mapping) -> Result<Option<(u32, u32)>, Corrupt> {
        if self.head == self.tail {
            let head = memory.u64_at(self.control + HEAD).load(Ordering::Acquire);
            if head == self.tail {
                return Ok(None);
            }
            if head.wrapping_sub(self.tail) > self.size || head & 7 != 0 {
                return Err(Corrupt);
            }
            self.head = head;
        }
        let at = self.data + (self.tail & (self.size - 1)) as usize;
        let (nbytes, flags) = (memory.read_u32(at), memory.read_u32(at + 4));
        if span(nbytes.into()) > self.head.wrapping_sub(self.tail) || flags & !MORE != 0 {
            return Err(Corrupt);
        }
        Ok(Some((nbytes, flags)))
    }

    /// Append the record that `next` has just described to a buffer; the writer may have its place.
    fn take(&mut self, memory: &Mapping, nbytes: u32, to: &mut Vec<u8>) {
        let at = (self.tail.wrapping_add(RECORD_HEADER) & (self.size - 1)) as usize;
        let first = (nbytes as usize).min(self.size as usize - at);
        to.reserve(nbytes as usize);
        memory.append(self.data + at, first, to);
        memory.append(self.data, nbytes as usize - first, to);
        self.tail = self.tail.wrapping_add(span(nbytes.into()));
        memory
            .u64_at(self.control + TAIL)
            .store(self.tail, Ordering::Release);
    }

    fn is_ready(&self, memory: &Mapping) -> bool {
        self.head != self.tail
            || memory.u64_at(self.control + HEAD).load(Ordering::Acquire) != self.tail
    }

    /// Say that this side sleeps, and look again; whether it may.
    fn may_sleep(&self, memory: &Mapping) -> bool {
        memory
            .u32_at(self.control + READER_SLEEPS)
            .store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !self.is_ready(memory) {
            return true;
        }
        self.awake(memory);
        false
    }

    /// This side is awake again, for whatever reason: no wake-up is wanted.
    fn awake(&self, memory: &Mapping) {
        memory
            .u32_at(self.control + READER_SLEEPS)
            .store(0, Ordering::Relaxed);
    }

    /// After records were taken: whether the writer has to be woken.
    fn must_wake_writer(&self, memory: &Mapping) -> bool {
        fence(Ordering::SeqCst);
        memory.take_flag(self.control + WRITER_SLEEPS)
    }
}

// ---- the memory --------------------------------------------------------------------------------

/// The segment that the host has made for this process; what its header says was checked.
struct Segment {
    memory: Mapping,
    ring_size: usize,
    arena: usize,
    arena_end: usize,
}

impl Segment {
    /// None where there is no segment, or none that this source understands.
    fn attach(announced: &str) -> Option<Segment> {
        let memory = Mapping::attach(announced)?;
        let mut header = Vec::new();
        memory.append(0, 32, &mut header);
        let number = |at: usize, nbytes: usize| {
            let digits = header[at..at + nbytes].iter().rev();
            digits.fold(0u64, |sum, &byte| sum << 8 | u64::from(byte))
        };
        let (ring_size, arena, arena_size) = (number(12, 4), number(16, 8), number(24, 8));
        let size = memory.size as u64;
        let is_sound = &header[..8] == b"ZENOSHM\0"
            && number(8, 4) == u64::from(VERSION)
            && (MIN_RING as u64..=MAX_RING as u64).contains(&ring_size)
            && ring_size.is_power_of_two()
            && (RINGS as u64 + 2 * ring_size..=size).contains(&arena)
            && arena % 64 == 0
            && arena_size <= size - arena;
        is_sound.then(|| Segment {
            ring_size: ring_size as usize,
            arena: arena as usize,
            arena_end: (arena + arena_size) as usize,
            memory,
        })
    }
}

/// What was taken of the guest's own arena, in ascending order: where each begins, behind its
/// header, and ends.
struct Arena {
    blocks: Vec<(usize, usize)>,
}

impl Arena {
    fn take<'s>(&mut self, segment: &'s mut Segment, nbytes: u64) -> Option<(u64, &'s mut [u8])> {
        let memory = &mut segment.memory;
        // Those that the host has done with go.
        self.blocks.retain(|block| {
            memory
                .u32_at(block.0 - BLOCK_HEADER)
                .load(Ordering::Acquire)
                != 0
        });
        if nbytes > memory.size as u64 {
            return None;
        }
        let size = (nbytes as usize + 63) & !63;
        let mut begin = segment.arena;
        let mut index = 0;
        while let Some(block) = self.blocks.get(index) {
            if block.0 - BLOCK_HEADER - begin >= size + BLOCK_HEADER {
                break;
            }
            begin = block.1;
            index += 1;
        }
        if index == self.blocks.len() && segment.arena_end.checked_sub(begin)? < size + BLOCK_HEADER
        {
            return None;
        }
        let place = begin + BLOCK_HEADER;
        self.blocks.insert(index, (place, place + size));
        memory.u32_at(begin).store(1, Ordering::Relaxed);
        Some((place as u64, memory.slice(place as u64, nbytes)?))
    }

    fn give_back(&mut self, segment: &Segment, offset: u64) {
        if self.blocks.iter().any(|block| block.0 as u64 == offset) {
            let header = offset as usize - BLOCK_HEADER;
            segment.memory.u32_at(header).store(0, Ordering::Release);
        }
    }
}

extern "C" {
    fn mmap(
        at: *mut c_void,
        size: usize,
        access: c_int,
        how: c_int,
        fd: c_int,
        from: i64,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, size: usize) -> c_int;
}

const READ_AND_WRITE: c_int = 1 | 2;
const SHARED: c_int = 1;

/// Memory that is shared with the host. All accesses to it are below, and stay inside: an offset
/// that does not is a bug in this file, and panics.
struct Mapping {
    base: *mut u8,
    size: usize,
}

// SAFETY: the memory belongs to no thread; what changes it needs `&mut self`, or is atomic, or is
// one of the rings' records, which belong to the one that holds the link.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Map what was announced as "DESCRIPTOR:SIZE"; None where that fails.
    fn attach(announced: &str) -> Option<Mapping> {
        let (fd, size) = announced.split_once(':')?;
        let (fd, size) = (fd.parse().ok()?, size.parse().ok()?);
        if size < RINGS {
            return None;
        }
        Mapping::of(fd, size)
    }

    /// Map what lies behind a descriptor, which may be closed then; None where that fails.
    fn of(fd: c_int, size: usize) -> Option<Mapping> {
        if cfg!(not(target_pointer_width = "64")) || size > isize::MAX as usize {
            return None;
        }
        // SAFETY: the system chooses a free place, so that nothing else is changed by this.
        let base = unsafe { mmap(ptr::null_mut(), size, READ_AND_WRITE, SHARED, fd, 0) };
        // What failed is -1, no multiple of a page.
        (base as isize != -1).then(|| Mapping {
            base: base as *mut u8,
            size,
        })
    }

    /// Where `nbytes` bytes from an offset on begin.
    fn at(&self, offset: usize, nbytes: usize) -> *mut u8 {
        assert!(offset <= self.size && nbytes <= self.size - offset);
        // SAFETY: that is inside of the mapping, or just behind its end with no bytes.
        unsafe { self.base.add(offset) }
    }

    fn u64_at(&self, offset: usize) -> &AtomicU64 {
        assert!(offset % 8 == 0);
        // SAFETY: inside, and aligned as a mapping begins with a page. Nobody in this process uses
        // the word in another way at the same time.
        unsafe { &*(self.at(offset, 8) as *const AtomicU64) }
    }

    fn u32_at(&self, offset: usize) -> &AtomicU32 {
        assert!(offset % 4 == 0);
        // SAFETY: as above.
        unsafe { &*(self.at(offset, 4) as *const AtomicU32) }
    }

    /// Whether somebody sleeps, whom we shall wake.
    fn take_flag(&self, offset: usize) -> bool {
        let flag = self.u32_at(offset);
        flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::AcqRel) != 0
    }

    fn read_u32(&self, offset: usize) -> u32 {
        u32::from_le(self.u32_at(offset).load(Ordering::Relaxed))
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: inside, and no Rust reference to it exists: `slice` borrows a mapping for itself.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(offset, bytes.len()), bytes.len())
        }
    }

    /// Copy bytes to the end of a buffer.
    fn append(&self, offset: usize, nbytes: usize, to: &mut Vec<u8>) {
        to.reserve(nbytes);
        // SAFETY: there is room for as many bytes, and then they have been written.
        unsafe {
            let end = to.as_mut_ptr().add(to.len());
            ptr::copy_nonoverlapping(self.at(offset, nbytes), end, nbytes);
            to.set_len(to.len() + nbytes);
        }
    }

    /// Bytes of an arena or of a buffer, or None where they would not be inside.
    fn slice(&mut self, offset: u64, nbytes: u64) -> Option<&mut [u8]> {
        let size = self.size as u64;
        if offset > size || nbytes > size - offset {
            return None;
        }
        let (offset, nbytes) = (offset as usize, nbytes as usize);
        // SAFETY: inside, and borrowed as long as the mapping. The host leaves blocks alone that
        // are ours, until we say by a message that we have done with them; so does who sent a
        // buffer.
        Some(unsafe { slice::from_raw_parts_mut(self.at(offset, nbytes), nbytes) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped as a whole, and no reference outlives it.
        unsafe { munmap(self.base as *mut c_void, self.size) };
    }
}
