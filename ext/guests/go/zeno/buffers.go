package zeno

import (
	"errors"
	"sync"
)

var errNoBytes = errors.New("zeno: there are no such bytes")

// partOf returns some of the bytes of shared memory, or an error where they are not in it.
func partOf(memory []byte, offset, nbytes uint64) ([]byte, error) {
	size := uint64(len(memory))
	if offset > size || nbytes > size-offset {
		return nil, errNoBytes
	}
	return memory[offset : offset+nbytes : offset+nbytes], nil
}

// buffer is memory of the host's that it gives to any of its plugins.
type buffer struct {
	id        uint64
	memory    []byte // nil where it could not be mapped
	users     int    // calls that may look at it
	forgotten bool
}

// buffers are those that the host has given. They come through a socket in the order in which the
// host gives them, each before the first request that refers to it.
type buffers struct {
	socket int        // -1 where there is none
	mutex  sync.Mutex // for what follows, and for who reads the socket
	taken  map[uint64]*buffer
}

// find takes what the host has given until there is the buffer with this id; nil where the next
// one does not come within a second.
func (buffers *buffers) find(id uint64) *buffer {
	for {
		if found := buffers.taken[id]; found != nil {
			return found
		}
		if buffers.socket < 0 {
			return nil
		}
		came, ok := receiveBuffer(buffers.socket)
		if !ok {
			return nil
		}
		if came == nil {
			continue
		}
		if buffers.taken == nil {
			buffers.taken = map[uint64]*buffer{}
		}
		buffers.taken[came.id] = came
	}
}

// hold keeps a buffer mapped until it is released. The host lets go of what a call refers to some
// time after it has given that call up, while this side may still work on it.
func (buffers *buffers) hold(id uint64) (*buffer, error) {
	buffers.mutex.Lock()
	defer buffers.mutex.Unlock()
	found := buffers.find(id)
	if found == nil || found.memory == nil {
		return nil, errNoBytes
	}
	found.users++
	return found, nil
}

func (buffers *buffers) release(held *buffer) {
	buffers.mutex.Lock()
	defer buffers.mutex.Unlock()
	held.users--
	buffers.dropUnused(held)
}

func (buffers *buffers) forget(id uint64) {
	buffers.mutex.Lock()
	defer buffers.mutex.Unlock()
	if found := buffers.find(id); found != nil { // it may still have been in the socket
		found.forgotten = true
		buffers.dropUnused(found)
	}
}

func (buffers *buffers) dropUnused(buffer *buffer) {
	if buffer.forgotten && buffer.users == 0 {
		delete(buffers.taken, buffer.id)
		unmapMemory(buffer.memory)
	}
}

// OffersBuffers tells whether the host may send buffers of its own: then "buffers" belongs among
// the features.
func (link *Link) OffersBuffers() bool { return link.OffersArena() && link.buffers.socket >= 0 }

// BufferBytes returns the bytes that a request means by {"$bytes":[offset,nbytes,id]}.
//
// They are the guest's to read and to write until it has answered that request, and may be answered
// with in the same words.
func (link *Link) BufferBytes(id, offset, nbytes uint64) ([]byte, error) {
	held, err := link.buffers.hold(id)
	if err != nil {
		return nil, err
	}
	defer link.buffers.release(held)
	return partOf(held.memory, offset, nbytes)
}

// ForgetBuffer lets go of a buffer, which nobody may look at any more: the host says so by
// {"type":"forget_buffers","buffers":[id,...]}.
func (link *Link) ForgetBuffer(id uint64) { link.buffers.forget(id) }
