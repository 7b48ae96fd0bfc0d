// Package zeno is how a sidecar in Go hears its host and answers: lines, or shared memory.
//
// It is made to be copied, and needs nothing but the standard library. Either copy the folder into
// a plugin's and say in the plugin's go.mod
//
//	require zeno v0.0.0
//	replace zeno => ./zeno
//
// or copy its .go files alone, and import them as a package of the plugin's own module.
//
// Most plugins call [Serve] and nothing else. [Link] is what lies below it:
//
//	link := zeno.Open() // before anything is read or printed
//	for {
//		message, err := link.Receive()
//		if err != nil {
//			break // io.EOF: there will be no more
//		}
//		... link.Send(answer) ... // each one JSON object, without a line end
//	}
//
// A message is what docs/protocol.md describes. Where OffersRing says so, the answer to plugin_init
// may have "shm" among its features; call UseRing right after that was sent, and all further
// messages go through shared memory. What is printed to stdout is logged as ever.
//
// Shared memory is for Linux with 64 bits; elsewhere everything goes through lines.
package zeno

import (
	"bufio"
	"errors"
	"io"
	"os"
	"sync"
)

var (
	errCorrupt = errors.New("zeno: the shared memory holds what cannot be")
	errGone    = errors.New("zeno: the host has gone")
)

var lineEnd = []byte{'\n'} // which is also what wakes the host

// Link is a sidecar's end of the way to its host.
//
// One goroutine at a time calls Receive and UseRing. All else may be called by any, at any time.
type Link struct {
	output    *os.File
	lines     *bufio.Reader
	segment   segment
	hostArena []byte // nil where the host shares none
	arena     arena
	buffers   buffers
	usesRing  bool
	reader    reader
	patience  patience
	sleeper   sleeper

	sending sync.Mutex // for what follows
	writer  writer
}

// Open takes up what the host offers in ZENO_SHM, ZENO_ARENA and ZENO_BUFFERS, and the standard
// streams.
func Open() *Link {
	link := newLink(os.Stdin, os.Stdout)
	link.segment, _ = attachSegment(os.Getenv("ZENO_SHM"))
	link.hostArena = attachMemory(os.Getenv("ZENO_ARENA"))
	if link.OffersArena() {
		link.arena.memory = link.segment.arena
		link.buffers.socket = openSocket(os.Getenv("ZENO_BUFFERS"))
	}
	return link
}

func newLink(input, output *os.File) *Link {
	link := &Link{output: output, lines: bufio.NewReaderSize(input, 1<<16)}
	link.buffers.socket = -1
	link.sleeper.open(input)
	return link
}

// OffersRing tells whether the host shares memory with this process, which may be made use of.
func (link *Link) OffersRing() bool { return link.segment.memory != nil }

// UseRing sends and receives through shared memory from now on.
//
// Call it right after the answer to plugin_init that had "shm" among its features. Later calls do
// nothing, and neither does one where the host offers no ring.
func (link *Link) UseRing() {
	link.sending.Lock()
	defer link.sending.Unlock()
	if link.usesRing || !link.OffersRing() {
		return
	}
	reader, readable := openReader(link.segment.toGuest)
	writer, writable := openWriter(link.segment.toHost)
	if readable && writable {
		link.reader, link.writer, link.usesRing = reader, writer, true
		link.lines = nil // a line more would be one that nobody sends
	}
}

// Receive waits for the next message, which is the caller's to keep.
//
// The error is io.EOF once there will be no more; no other is got over either.
func (link *Link) Receive() ([]byte, error) {
	if link.usesRing {
		return link.receiveRecord()
	}
	return link.receiveLine()
}

// Send sends one message, without a line end and without one inside.
//
// It waits while the host reads what was sent before. An error means that the host has gone. The
// message is the caller's again when it returns.
func (link *Link) Send(message []byte) error {
	link.sending.Lock()
	defer link.sending.Unlock()
	if link.usesRing {
		return link.sendRecord(message)
	}
	line := append(message[:len(message):len(message)], '\n')
	_, err := link.output.Write(line) // in one piece, whatever else is printed
	return err
}

func (link *Link) receiveLine() ([]byte, error) {
	var message []byte
	for {
		part, err := link.lines.ReadSlice('\n')
		message = append(message, part...)
		switch {
		case err == bufio.ErrBufferFull:
		case err != nil:
			return nil, err // perhaps in the middle of a line, which nobody finishes
		case len(message) > 1:
			return message[:len(message)-1], nil
		default:
			message = message[:0] // an empty line
		}
	}
}

func (link *Link) receiveRecord() ([]byte, error) {
	reader := &link.reader
	var message []byte
	for {
		nbytes, more, err := reader.next()
		if err != nil {
			return nil, err
		}
		if nbytes != nothing {
			message = reader.take(nbytes, message)
			if reader.head == reader.tail && reader.mustWakeWriter() {
				link.output.Write(lineEnd) // where the host has gone, the next sleep ends at once
			}
			if !more {
				return message, nil
			}
			continue
		}
		if link.patience.spin(reader) {
			continue
		}
		wakes := link.sleeper.count()
		if !reader.maySleep() {
			continue
		}
		open := link.sleeper.sleep(wakes)
		reader.awake()
		if !open && !reader.isReady() {
			return nil, io.EOF
		}
	}
}

func (link *Link) sendRecord(message []byte) error {
	writer := &link.writer
	for {
		count, err := writer.pushSome(message)
		if err != nil {
			return err
		}
		if writer.mustWakeReader() {
			if _, err := link.output.Write(lineEnd); err != nil {
				return err
			}
		}
		if count == len(message) {
			return nil
		}
		if count != nothing {
			message = message[count:]
			continue
		}
		if err := link.waitForRoom(writer.wanted(len(message))); err != nil {
			return err
		}
	}
}

// waitForRoom waits until this much is free, or for something else after which to look again.
func (link *Link) waitForRoom(wanted uint64) error {
	writer := &link.writer
	if came, err := spinForRoom(writer, wanted); came || err != nil {
		return err
	}
	wakes := link.sleeper.count()
	maySleep, err := writer.maySleep(wanted)
	if !maySleep || err != nil {
		return err
	}
	if link.sleeper.sleep(wakes) {
		return nil
	}
	if room, err := writer.room(wanted); err != nil || room >= wanted {
		return err
	}
	return errGone
}

// OffersArena tells whether bytes may go through shared memory: then "arena" belongs among the
// features.
func (link *Link) OffersArena() bool { return link.hostArena != nil && link.OffersRing() }

// Bytes returns the bytes that a request means by {"$bytes":[offset,nbytes]}.
//
// They are the guest's to read and to write until it has answered that request, and not longer.
func (link *Link) Bytes(offset, nbytes uint64) ([]byte, error) {
	return partOf(link.hostArena, offset, nbytes)
}

// NewBytes takes room for bytes to answer with, which hold whatever was there.
//
// Write them, and send {"$bytes":[offset,nbytes]}, with "binary":true behind the data. Where there
// is no room, ok is false: send base64 then.
func (link *Link) NewBytes(nbytes int) (bytes []byte, offset uint64, ok bool) {
	bytes, begin, ok := link.arena.take(nbytes)
	if !ok {
		return nil, 0, false
	}
	return bytes, link.segment.arenaOffset + begin, true
}

// DropBytes takes bytes back that were not sent.
func (link *Link) DropBytes(offset uint64) {
	link.arena.giveBack(offset - link.segment.arenaOffset)
}
