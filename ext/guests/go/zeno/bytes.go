package zeno

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Bytes are bytes to answer with. They may stand anywhere in what a slot's Run returns, once.
type Bytes struct {
	// Data is to be written to, and may be made shorter at its end. Another slice that is put here
	// goes as base64.
	Data []byte
	// Type is NumPy's name of the elements, such as "<f4"; "" for plain bytes.
	Type string
	// Shape is how many there are in each dimension, in C's order; nil for one dimension.
	Shape []int

	offset uint64
	sent   bool
	room   []byte // where it is in shared memory
}

// Bytes returns the bytes of a parameter.
//
// Where the host shares memory they lie in it, and are to be left alone once the call is answered.
// A parameter which is none is an error.
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
	if json.Unmarshal(about.Bytes, &place) != nil || len(place) != 2 {
		return nil, fmt.Errorf("these are no bytes: %.100s", about.Bytes)
	}
	return call.link.Bytes(place[0], place[1])
}

// NewBytes returns bytes to answer with, which hold whatever was there before they are written.
//
// They are in shared memory where there is room, and else go as base64. Those that are not part of
// the answer are taken back.
func (call *Call) NewBytes(nbytes int) *Bytes {
	taken := new(Bytes)
	room, offset, ok := call.link.NewBytes(nbytes)
	if ok {
		taken.Data, taken.room, taken.offset = room, room, offset
	} else {
		taken.Data = make([]byte, nbytes)
	}
	call.taken = append(call.taken, taken)
	return taken
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
		to = append(to, '[')
		to = strconv.AppendUint(to, bytes.offset, 10)
		to = append(to, ',')
		to = strconv.AppendInt(to, int64(len(bytes.Data)), 10)
		to = append(to, ']')
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
