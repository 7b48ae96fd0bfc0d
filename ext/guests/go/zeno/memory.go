package zeno

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// The segment, as zeno_shm.h describes it.

const (
	version     = 1
	toGuestAt   = 256 // the control blocks of the two rings
	toHostAt    = 512
	ringsAt     = 4096 // where their data begins
	minRing     = 4096
	maxRing     = 1 << 30
	blockHeader = 64
)

// segment is what the host has made for this process; its memory is nil where it has made none.
type segment struct {
	memory      []byte
	toGuest     ring
	toHost      ring
	arena       []byte // for what we answer
	arenaOffset uint64 // of which the host counts from the segment's begin
}

// attachMemory maps what was announced as "DESCRIPTOR:SIZE"; nil where that fails.
func attachMemory(announced string) []byte {
	descriptor, nbytes, found := strings.Cut(announced, ":")
	fd, err := strconv.Atoi(descriptor)
	size, sizeErr := strconv.ParseInt(nbytes, 10, strconv.IntSize)
	if !found || err != nil || sizeErr != nil || size < ringsAt {
		return nil
	}
	return mapMemory(fd, int(size))
}

// attachSegment finds a segment's parts; false where there is none, or none that this source
// understands. It stays mapped for the life of the process.
func attachSegment(announced string) (segment, bool) {
	memory := attachMemory(announced)
	if memory == nil {
		return segment{}, false
	}
	return readSegment(memory)
}

func readSegment(memory []byte) (segment, bool) {
	header := slices.Clone(memory[:32])
	// In the machine's order, so that one in which it is another finds no version that it knows.
	number := binary.NativeEndian
	ringSize := uint64(number.Uint32(header[12:]))
	arenaAt, arenaSize := number.Uint64(header[16:]), number.Uint64(header[24:])
	size := uint64(len(memory))
	if string(header[:8]) != "ZENOSHM\x00" || number.Uint32(header[8:]) != version ||
		ringSize < minRing || ringSize > maxRing || ringSize&(ringSize-1) != 0 ||
		arenaAt < ringsAt+2*ringSize || arenaAt > size || arenaAt%blockHeader != 0 ||
		arenaSize > size-arenaAt {
		return segment{}, false
	}
	between := ringsAt + ringSize
	return segment{
		memory: memory,
		toGuest: ring{
			control: memory[toGuestAt : toGuestAt+controlSize],
			data:    memory[ringsAt:between:between],
		},
		toHost: ring{
			control: memory[toHostAt : toHostAt+controlSize],
			data:    memory[between : between+ringSize : between+ringSize],
		},
		arena:       memory[arenaAt : arenaAt+arenaSize],
		arenaOffset: arenaAt,
	}, true
}

// arena is where bytes of answers lie. Without memory it has no room.
type arena struct {
	memory []byte
	mutex  sync.Mutex
	blocks []block // that were taken, in ascending order
}

// block is some bytes of an arena, without the header before them, whose first word is 1 while they
// are in use. Its end is rounded up.
type block struct {
	begin, end int
}

// inUse returns the word that tells whether a block is.
func (arena *arena) inUse(begin int) *uint32 { return word32(arena.memory, begin-blockHeader) }

// take returns the first place that is large enough, and where in the arena it begins.
func (arena *arena) take(nbytes int) ([]byte, uint64, bool) {
	if nbytes < 0 || nbytes > len(arena.memory) {
		return nil, 0, false
	}
	needed := blockHeader + (nbytes+63)&^63
	arena.mutex.Lock()
	defer arena.mutex.Unlock()
	arena.blocks = slices.DeleteFunc(arena.blocks, func(block block) bool {
		return atomic.LoadUint32(arena.inUse(block.begin)) == 0 // the host has done with it
	})
	at, index := 0, 0
	for ; index < len(arena.blocks); index++ {
		if arena.blocks[index].begin-blockHeader-at >= needed {
			break
		}
		at = arena.blocks[index].end
	}
	if index == len(arena.blocks) && len(arena.memory)-at < needed {
		return nil, 0, false
	}
	begin := at + blockHeader
	arena.blocks = slices.Insert(arena.blocks, index, block{begin, at + needed})
	atomic.StoreUint32(arena.inUse(begin), 1)
	return arena.memory[begin : begin+nbytes : begin+nbytes], uint64(begin), true
}

func (arena *arena) giveBack(begin uint64) {
	arena.mutex.Lock()
	defer arena.mutex.Unlock()
	for _, block := range arena.blocks {
		if uint64(block.begin) == begin {
			atomic.StoreUint32(arena.inUse(block.begin), 0)
		}
	}
}
