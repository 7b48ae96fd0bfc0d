package zeno

import (
	"os"
	"sync"
	"time"
)

const (
	looks    = 2000 // at a ring, about a microsecond
	spinTime = 30 * time.Microsecond
	busyTime = 8 * time.Microsecond // that giving up the processor takes where others want it
	misses   = 3
)

// patience is how long it is worth while to wait awake.
type patience struct {
	misses, skip int
}

// spin waits awake for a moment; whether something came.
//
// Where that is in vain several times in a row, as on a busy machine or with a host that calls
// seldom, it is left out for longer and longer. Other goroutines are not let in meanwhile: after
// runtime.Gosched another thread would go on here, often on the processor that the host needs.
func (patience *patience) spin(reader *reader) bool {
	if patience.skip > 0 {
		patience.skip--
		return false
	}
	for range looks {
		if reader.isReady() {
			patience.misses = 0
			return true
		}
	}
	for begin, before := time.Now(), time.Duration(0); ; {
		yieldProcessor()
		if reader.isReady() {
			patience.misses = 0
			return true
		}
		elapsed := time.Since(begin)
		if elapsed >= spinTime || elapsed-before > busyTime {
			break
		}
		before = elapsed
	}
	patience.misses = min(patience.misses+1, 6)
	if patience.misses >= misses {
		patience.skip = 1 << patience.misses
	}
	return false
}

// spinForRoom waits awake for a moment until the host has read; whether there is room.
func spinForRoom(writer *writer, wanted uint64) (bool, error) {
	for begin := time.Now(); ; {
		free, err := writer.room(wanted)
		if err != nil || free >= wanted {
			return err == nil, err
		}
		if time.Since(begin) > spinTime {
			return false, nil
		}
		yieldProcessor()
	}
}

// sleeper sleeps until the host has written to our input. What it has written says nothing.
//
// The goroutine that receives and one that sends may sleep at the same time, and either may get
// the byte that was meant for the other. So one of them reads, and each byte wakes both. Who is
// about to sleep asks for count, then tells the host, then looks once more, and then sleeps unless
// a byte has come since count.
type sleeper struct {
	input   *os.File
	mutex   sync.Mutex // for what follows
	woken   sync.Cond
	reading bool
	ended   bool
	wakes   uint64
}

func (sleeper *sleeper) open(input *os.File) {
	sleeper.input = input
	sleeper.woken.L = &sleeper.mutex
}

// count tells how often the host has woken us.
func (sleeper *sleeper) count() uint64 {
	sleeper.mutex.Lock()
	defer sleeper.mutex.Unlock()
	return sleeper.wakes
}

// sleep sleeps until the host has woken us more often than this; false once it never will.
func (sleeper *sleeper) sleep(wakes uint64) bool {
	var bytes [256]byte
	sleeper.mutex.Lock()
	defer sleeper.mutex.Unlock()
	for sleeper.wakes == wakes && !sleeper.ended {
		if sleeper.reading {
			sleeper.woken.Wait()
			continue
		}
		sleeper.reading = true
		sleeper.mutex.Unlock()
		count, _ := sleeper.input.Read(bytes[:])
		sleeper.mutex.Lock()
		sleeper.reading = false
		sleeper.ended = count == 0 // whatever ended it
		sleeper.wakes++
		sleeper.woken.Broadcast()
	}
	return !sleeper.ended
}
