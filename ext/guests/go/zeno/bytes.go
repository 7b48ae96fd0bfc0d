package zeno

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unsafe"
)

// Bytes are bytes to answer with. They may stand anywhere in what a slot's Run returns, once.
type Bytes struct {
	// Data is to be written to, and may be made shorter at its end. Another slice that is put here
	// goes as base64, unless it is part of a buffer that a parameter of the call lies in.
	Data []byte
	// Type is NumPy's name of the elements, such as "<f4"; "" for plain bytes.
	Type string
	// Shape is how many there are in each dimension, in C's order; nil for one dimension.
	Shape []int

	call   *Call
	offset uint64
	sent   bool
	room   []byte // where it is in shared memory
}

// part is a parameter that lies in a buffer of the host's, which the call holds.
type part struct {
	buffer *buffer
	offset uint64
	data   []byte
}

// Bytes returns the bytes of a parameter.
//
// Where the host shares memory they lie in it, and are to be left alone once the call is answered.
// In a buffer of the host's, whoever has that sees what is written to them. A parameter which is
// none is an error.
func (call *Call) Bytes(parameter json.RawMessage) ([]byte, error) {
	var about struct {
		Bytes json.RawMessage `json:"$bytes"`
	}
	if json.Unmarshal(parameter, &about) != nil || len(about.Bytes) == 0 {
		return nil, errors.New("there are no bytes where some are needed")
	}
	if about.Bytes[0] == '"' {
		var decoded []byte
		if err := json.Unmarshal(about.Bytes, &decoded); err != nil {
			return nil, fmt.Errorf("these are no bytes: %w", err)
		}
		return decoded, nil
	}
	var place []uint64
	err := json.Unmarshal(about.Bytes, &place)
	switch {
	case err == nil && len(place) == 2:
		return call.link.Bytes(place[0], place[1])
	case err == nil && len(place) == 3:
		return call.bufferBytes(place[2], place[0], place[1])
	}
	return nil, fmt.Errorf("these are no bytes: %.100s", about.Bytes)
}

// bufferBytes returns bytes in a buffer, which stays until the call has ended.
func (call *Call) bufferBytes(id, offset, nbytes uint64) ([]byte, error) {
	held, err := call.link.buffers.hold(id)
	if err != nil {
		return nil, err
	}
	data, err := partOf(held.memory, offset, nbytes)
	call.parts = append(call.parts, part{held, offset, data})
	return data, err
}

// placeOf finds bytes in the buffers that parameters of the call lie in.
func (call *Call) placeOf(data []byte) (offset, id uint64, ok bool) {
	if call == nil || len(data) == 0 {
		return 0, 0, false
	}
	for _, part := range call.parts {
		size, from := uintptr(len(part.data)), address(data)-address(part.data)
		if from < size && uintptr(len(data)) <= size-from {
			return part.offset + uint64(from), part.buffer.id, true
		}
	}
	return 0, 0, false
}

func address(bytes []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(bytes))) }

// NewBytes returns bytes to answer with, which hold whatever was there before they are written.
//
// They are in shared memory where there is room, and else go as base64. Those that are not part of
// the answer are taken back.
func (call *Call) NewBytes(nbytes int) *Bytes {
	taken := &Bytes{call: call}
	room, offset, ok := call.link.NewBytes(nbytes)
	if ok {
		taken.Data, taken.room, taken.offset = room, room, offset
	} else {
		taken.Data = make([]byte, nbytes)
	}
	call.taken = append(call.taken, taken)
	return taken
}

// AnswerBytes returns bytes to answer with that hold these.
//
// What lies in a buffer of the host's, in which a parameter of this call came, is not copied: it is
// for whoever has the buffer to see what is written to it, before and after.
func (call *Call) AnswerBytes(data []byte) *Bytes {
	if _, _, ok := call.placeOf(data); !ok {
		copied := call.NewBytes(len(data))
		copy(copied.Data, data)
		return copied
	}
	shared := &Bytes{Data: data, call: call}
	call.taken = append(call.taken, shared)
	return shared
}

// MarshalJSON writes what stands for the bytes in an answer.
func (bytes *Bytes) MarshalJSON() ([]byte, error) { return bytes.appendTo(nil), nil }

// isInRoom tells whether the data still lie where they were to be written to.
func (bytes *Bytes) isInRoom() bool {
	data, room := bytes.Data, bytes.room
	if room == nil || len(data) > len(room) {
		return false
	}
	return len(data) == 0 || &data[0] == &room[0]
}

func (bytes *Bytes) appendTo(to []byte) []byte {
	to = append(to, `{"$bytes":`...)
	if bytes.isInRoom() && !bytes.sent {
		bytes.sent = true // once: whoever gets them twice would let go of them twice
		to = appendNumbers(to, bytes.offset, uint64(len(bytes.Data)))
	} else if offset, id, ok := bytes.call.placeOf(bytes.Data); ok {
		to = appendNumbers(to, offset, uint64(len(bytes.Data)), id)
	} else {
		to = append(to, '"')
		to = base64.StdEncoding.AppendEncode(to, bytes.Data)
		to = append(to, '"')
	}
	if bytes.Type != "" {
		text, _ := json.Marshal(bytes.Type)
		to = append(append(to, `,"dtype":`...), text...)
	}
	if bytes.Shape != nil {
		text, _ := json.Marshal(bytes.Shape)
		to = append(append(to, `,"shape":`...), text...)
	}
	return append(to, '}')
}

func appendNumbers(to []byte, numbers ...uint64) []byte {
	before := byte('[')
	for _, number := range numbers {
		to = strconv.AppendUint(append(to, before), number, 10)
		before = ','
	}
	return append(to, ']')
}
