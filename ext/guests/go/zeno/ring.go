package zeno

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// The rings, as zeno_ring.h describes them. Go's atomics are sequentially consistent, so that no
// fence is needed between saying and looking: what is stored to a cursor or a flag is there for the
// other side before anything is loaded after it.

const (
	controlSize  = 256
	headAt       = 0 // offsets in a control block
	readerSleeps = 8
	tailAt       = 128
	writerSleeps = 136

	recordHeader = 8
	flagMore     = 1
	nothing      = -1 // in place of a count of bytes
)

// ring is one of the two, in memory that is shared.
type ring struct {
	control []byte
	data    []byte // of a length that is a power of two
}

// word64 points to a shared word; the memory begins at a multiple of 8, and so does the word.
func word64(memory []byte, at int) *uint64 {
	return (*uint64)(unsafe.Pointer(&memory[at : at+8][0]))
}

func word32(memory []byte, at int) *uint32 {
	return (*uint32)(unsafe.Pointer(&memory[at : at+4][0]))
}

// takeFlag tells whether somebody sleeps, whom the caller has to wake then.
func takeFlag(flag *uint32) bool {
	return atomic.LoadUint32(flag) != 0 && atomic.SwapUint32(flag, 0) != 0
}

// span is how many bytes of the ring a record takes.
func span(nbytes int) uint64 { return recordHeader + (uint64(nbytes)+7)&^7 }

// writer is the end of a ring that writes. It believes nothing of the other side before it has
// checked it.
type writer struct {
	data       []byte
	head, tail uint64 // bytes ever written; bytes ever read, as last seen
	sharedHead *uint64
	sharedTail *uint64
	readerFlag *uint32
	writerFlag *uint32
}

// openWriter writes to a ring from where its cursors stand; false where they cannot stand there.
func openWriter(ring ring) (writer, bool) {
	opened := writer{
		data:       ring.data,
		sharedHead: word64(ring.control, headAt),
		sharedTail: word64(ring.control, tailAt),
		readerFlag: word32(ring.control, readerSleeps),
		writerFlag: word32(ring.control, writerSleeps),
	}
	opened.head = atomic.LoadUint64(opened.sharedHead)
	opened.tail = atomic.LoadUint64(opened.sharedTail)
	sound := (opened.head|opened.tail)&7 == 0 && opened.head-opened.tail <= opened.size()
	return opened, sound
}

func (writer *writer) size() uint64 { return uint64(len(writer.data)) }

// room has this many bytes free, if it can; it returns how many are.
func (writer *writer) room(wanted uint64) (uint64, error) {
	free := writer.size() - (writer.head - writer.tail)
	if free >= wanted {
		return free, nil
	}
	tail := atomic.LoadUint64(writer.sharedTail)
	if writer.head-tail > writer.size() || tail&7 != 0 {
		return 0, errCorrupt
	}
	writer.tail = tail
	return writer.size() - (writer.head - tail), nil
}

// wanted is how much has to be free for pushSome of this many bytes to go on.
func (writer *writer) wanted(nbytes int) uint64 { return min(span(nbytes), writer.size()/4) }

// pushSome writes as much of a message as there is room for, and returns how many bytes that were;
// nothing where the ring is full.
func (writer *writer) pushSome(bytes []byte) (int, error) {
	needed := span(len(bytes))
	free, err := writer.room(min(needed, writer.size()))
	switch {
	case err != nil:
		return nothing, err
	case free >= needed:
		writer.put(bytes, 0)
		return len(bytes), nil
	case free < writer.wanted(len(bytes)):
		return nothing, nil
	}
	// Still a multiple of 8, and below the length, for the whole did not fit.
	count := int(free - recordHeader)
	writer.put(bytes[:count], flagMore)
	return count, nil
}

// put writes a record for which there is room, and publishes it.
func (writer *writer) put(bytes []byte, flags uint32) {
	mask := writer.size() - 1
	at := writer.head & mask
	binary.LittleEndian.PutUint32(writer.data[at:], uint32(len(bytes)))
	binary.LittleEndian.PutUint32(writer.data[at+4:], flags)
	first := copy(writer.data[(at+recordHeader)&mask:], bytes)
	copy(writer.data, bytes[first:])
	writer.head += span(len(bytes))
	atomic.StoreUint64(writer.sharedHead, writer.head)
}

// mustWakeReader tells, after a record, whether the reader has to be woken. It does not sleep for
// the ring then.
func (writer *writer) mustWakeReader() bool { return takeFlag(writer.readerFlag) }

// maySleep says that this side sleeps for room, and looks again; whether it may.
func (writer *writer) maySleep(wanted uint64) (bool, error) {
	atomic.StoreUint32(writer.writerFlag, 1)
	free, err := writer.room(wanted)
	if err == nil && free < wanted {
		return true, nil
	}
	atomic.StoreUint32(writer.writerFlag, 0)
	return false, err
}

// reader is the end of a ring that reads, which believes as little.
type reader struct {
	data       []byte
	head, tail uint64 // bytes ever written, as last seen; bytes ever read
	sharedHead *uint64
	sharedTail *uint64
	readerFlag *uint32
	writerFlag *uint32
}

// openReader reads a ring from where its cursors stand; false where they cannot stand there.
func openReader(ring ring) (reader, bool) {
	opened := reader{
		data:       ring.data,
		sharedHead: word64(ring.control, headAt),
		sharedTail: word64(ring.control, tailAt),
		readerFlag: word32(ring.control, readerSleeps),
		writerFlag: word32(ring.control, writerSleeps),
	}
	opened.tail = atomic.LoadUint64(opened.sharedTail)
	opened.head = opened.tail
	return opened, opened.tail&7 == 0
}

func (reader *reader) size() uint64 { return uint64(len(reader.data)) }

// next returns the length of the next record, which stays, and whether the message goes on behind
// it; nothing where there is none.
func (reader *reader) next() (nbytes int, more bool, err error) {
	if reader.head == reader.tail {
		head := atomic.LoadUint64(reader.sharedHead)
		if head == reader.tail {
			return nothing, false, nil
		}
		if head-reader.tail > reader.size() || head&7 != 0 {
			return nothing, false, errCorrupt
		}
		reader.head = head
	}
	header := binary.LittleEndian.Uint64(reader.data[reader.tail&(reader.size()-1):])
	nbytes, flags := int(uint32(header)), header>>32
	if span(nbytes) > reader.head-reader.tail || flags&^flagMore != 0 {
		return nothing, false, errCorrupt
	}
	return nbytes, flags == flagMore, nil
}

// take appends the record whose length next has just returned, and lets the writer have its place.
func (reader *reader) take(nbytes int, to []byte) []byte {
	at := (reader.tail + recordHeader) & (reader.size() - 1)
	first := min(nbytes, len(reader.data)-int(at))
	if to == nil {
		to = make([]byte, 0, nbytes)
	}
	to = append(to, reader.data[at:int(at)+first]...)
	to = append(to, reader.data[:nbytes-first]...)
	reader.tail += span(nbytes)
	atomic.StoreUint64(reader.sharedTail, reader.tail)
	return to
}

// isReady tells whether there is something to read; cheap enough to be asked in a loop.
func (reader *reader) isReady() bool {
	return reader.head != reader.tail || atomic.LoadUint64(reader.sharedHead) != reader.tail
}

// maySleep says that this side sleeps, and looks again; whether it may.
func (reader *reader) maySleep() bool {
	atomic.StoreUint32(reader.readerFlag, 1)
	if !reader.isReady() {
		return true
	}
	reader.awake()
	return false
}

// awake says that this side is awake again, for whatever reason: no wake-up is wanted.
func (reader *reader) awake() { atomic.StoreUint32(reader.readerFlag, 0) }

// mustWakeWriter tells, after records were taken, whether the writer has to be woken.
func (reader *reader) mustWakeWriter() bool { return takeFlag(reader.writerFlag) }
