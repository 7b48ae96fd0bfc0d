package zeno

import (
	"bytes"
	"encoding/json"
)

// request is a call of a slot, or what the host says besides. Its parts lie in the message.
type request struct {
	ID         json.RawMessage `json:"id"`        // as it came, to be repeated
	SlotName   string          `json:"slot_name"` // empty where it is no call
	Parameters json.RawMessage `json:"parameters"`
	Type       string          `json:"type"`    // "" where it is spelt as usual
	Buffers    []uint64        `json:"buffers"` // to forget
}

// parseRequest reads a message.
func parseRequest(message []byte) (request, error) {
	if call, ok := parseUsual(message); ok {
		return call, nil
	}
	var call request
	err := json.Unmarshal(message, &call)
	return call, err
}

// parseUsual reads a call that is spelt as the host spells them; false leaves it to encoding/json,
// which looks at each byte three times.
func parseUsual(message []byte) (request, bool) {
	rest, ok := bytes.CutPrefix(message, []byte(`{"type":"guest_call","id":`))
	if !ok {
		return request{}, false
	}
	id, rest, ok := cutString(rest)
	if !ok {
		return request{}, false
	}
	rest, ok = bytes.CutPrefix(rest, []byte(`,"slot_name":`))
	if !ok {
		return request{}, false
	}
	slot, rest, ok := cutString(rest)
	if !ok {
		return request{}, false
	}
	rest, ok = bytes.CutPrefix(rest, []byte(`,"parameters":`))
	if !ok {
		return request{}, false
	}
	end := valueEnd(rest)
	if end == 0 || end == len(rest) {
		return request{}, false
	}
	return request{
		ID: id, SlotName: string(slot[1 : len(slot)-1]), Parameters: rest[:end:end],
	}, true
}

// cutString takes a string without escapes, with its quotes, from the begin of a text.
func cutString(text []byte) (found, rest []byte, ok bool) {
	if len(text) == 0 || text[0] != '"' {
		return nil, text, false
	}
	end := bytes.IndexByte(text[1:], '"') + 2
	if end < 2 || bytes.IndexByte(text[:end], '\\') >= 0 {
		return nil, text, false
	}
	return text[:end:end], text[end:], true
}

// valueEnd returns where the JSON value ends that a text begins with. Of what is no JSON it returns
// anything inside the text.
func valueEnd(text []byte) int {
	depth := 0
	for at := 0; at < len(text); at++ {
		switch text[at] {
		case '"':
			at = stringEnd(text, at+1)
			if depth == 0 {
				return min(at+1, len(text))
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return at // behind a number, true, false or null
			}
			if depth--; depth == 0 {
				return at + 1
			}
		case ',':
			if depth == 0 {
				return at
			}
		}
	}
	return len(text)
}

// stringEnd returns where the quote is that ends the string which begins at from.
func stringEnd(text []byte, from int) int {
	for at := from; ; at++ {
		next := bytes.IndexByte(text[at:], '"')
		if next < 0 {
			return len(text)
		}
		at += next
		escapes := 0
		for at-escapes > from && text[at-escapes-1] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return at
		}
	}
}
