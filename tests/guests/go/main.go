// The behaviour guest as a sidecar in Go: each call runs in a goroutine of its own, so answers come
// in the order in which they are ready.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

type request struct {
	Type       string          `json:"type"`
	ID         string          `json:"id"` // a number here would end this guest
	SlotName   string          `json:"slot_name"`
	Parameters json.RawMessage `json:"parameters"`
}

type parameters struct {
	Value   json.RawMessage `json:"value"`
	Text    string          `json:"text"`
	Message string          `json:"message"`
	Seconds float64         `json:"seconds"`
	Lines   *int            `json:"lines"`
}

type object = map[string]any

var calls atomic.Int64

func name() string {
	if name := os.Getenv("ZENO_PLUGIN_NAME"); name != "" {
		return name
	}
	return "go"
}

func slots() []object {
	text := object{"type": "string", "required": true}
	slot := func(slot, description string, inputs object) object {
		return object{"name": name() + "." + slot, "description": description, "inputs": inputs}
	}
	return []object{
		slot("echo", "Answer the value as it came", object{"value": object{"type": "any"}}),
		slot("size", "Count a text's bytes", object{"text": text}),
		slot("fail", "Fail with a message", object{"message": text}),
		slot("crash", "End without an answer", object{}),
		slot("sleep", "Take a while", object{"seconds": object{"type": "number", "required": true}}),
		slot("spam", "Print noise, then answer", object{"lines": object{"type": "int", "default": 10}}),
		slot("count", "Count the calls so far", object{}),
	}
}

func spam(lines int) int {
	for i := 0; i < lines; i++ {
		fmt.Printf("noise %d on stdout\n", i)
		fmt.Fprintf(os.Stderr, "noise %d on stderr\n", i)
	}
	fmt.Print("{\"level\":\"info\",\"message\":\"JSON, but no message of the protocol\"}\n[1,2]\n")
	return lines
}

func run(slot string, raw json.RawMessage) (any, error) {
	switch slot {
	case "plugin_init":
		return object{"name": name(), "version": "1.0.0", "author": "tests", "language": "Go"}, nil
	case "plugin_register_slots":
		return object{"slots": slots()}, nil
	}
	count := calls.Add(1)
	var p parameters
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &p); err != nil {
			return nil, err
		}
	}
	switch slot[strings.LastIndexByte(slot, '.')+1:] {
	case "echo":
		return p.Value, nil
	case "size":
		return len(p.Text), nil
	case "fail":
		return nil, fmt.Errorf("%s", p.Message)
	case "crash":
		fmt.Fprintln(os.Stderr, "go guest: crashing as it was told")
		os.Exit(3)
	case "sleep":
		time.Sleep(time.Duration(p.Seconds * float64(time.Second)))
		return p.Seconds, nil
	case "spam":
		lines := 10
		if p.Lines != nil {
			lines = *p.Lines
		}
		return spam(lines), nil
	case "count":
		return count, nil
	}
	return nil, fmt.Errorf("unknown slot %s", slot)
}

// encode writes data without the copies and the HTML escapes that json.Marshal makes of raw JSON.
func encode(data any) []byte {
	if raw, ok := data.(json.RawMessage); ok {
		if raw == nil {
			return []byte("null")
		}
		return raw
	}
	text, err := json.Marshal(data)
	if err != nil {
		panic(err)
	}
	return text
}

func answer(call request) {
	data, err := run(call.SlotName, call.Parameters)
	line := append([]byte(`{"type":"guest_response","id":`), encode(call.ID)...)
	if err != nil {
		line = append(append(line, `,"success":false,"data":null,"error":`...), encode(err.Error())...)
	} else {
		line = append(append(line, `,"success":true,"data":`...), encode(data)...)
	}
	os.Stdout.Write(append(line, "}\n"...)) // one write: lines of other goroutines stay whole
}

func main() {
	input := bufio.NewReaderSize(os.Stdin, 1<<16)
	for {
		line, err := input.ReadBytes('\n')
		if err == io.EOF {
			return
		}
		var call request
		if err != nil || json.Unmarshal(line, &call) != nil {
			fmt.Fprintf(os.Stderr, "go guest: not a request: %.200s\n", line)
			os.Exit(1)
		}
		go answer(call)
	}
}
