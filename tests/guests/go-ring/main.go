// The behaviour guest once more, by the guest library, which the build copies to ./zeno.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"zeno"
)

type parameters struct {
	Value   json.RawMessage `json:"value"`
	Text    string          `json:"text"`
	Message string          `json:"message"`
	Seconds float64         `json:"seconds"`
	Lines   *int            `json:"lines"`
	Data    json.RawMessage `json:"data"`
	Begin   int             `json:"begin"`
	End     *int            `json:"end"`
}

type object = map[string]any

var calls atomic.Int64

func echo(_ *zeno.Call, p *parameters) (any, error) { return p.Value, nil }

func size(_ *zeno.Call, p *parameters) (any, error) { return len(p.Text), nil }

func fail(_ *zeno.Call, p *parameters) (any, error) { return nil, errors.New(p.Message) }

func crash(*zeno.Call, *parameters) (any, error) {
	fmt.Fprintln(os.Stderr, "go guest: crashing as it was told")
	os.Exit(3)
	return nil, nil
}

func sleep(_ *zeno.Call, p *parameters) (any, error) {
	time.Sleep(time.Duration(p.Seconds * float64(time.Second)))
	return p.Seconds, nil
}

func spam(_ *zeno.Call, p *parameters) (any, error) {
	lines := 10
	if p.Lines != nil {
		lines = *p.Lines
	}
	for i := range lines {
		fmt.Printf("noise %d on stdout\n", i)
		fmt.Fprintf(os.Stderr, "noise %d on stderr\n", i)
	}
	fmt.Print("{\"level\":\"info\",\"message\":\"JSON, but no message of the protocol\"}\n[1,2]\n")
	return lines, nil
}

func count(*zeno.Call, *parameters) (any, error) { return calls.Load(), nil }

func invert(call *zeno.Call, p *parameters) (any, error) {
	data, err := call.Bytes(p.Data)
	if err != nil {
		return nil, err
	}
	inverted := call.NewBytes(len(data))
	for i, b := range data {
		inverted.Data[i] = ^b
	}
	return inverted, nil
}

// invertInPlace writes to the bytes that it got, and answers with those.
func invertInPlace(call *zeno.Call, p *parameters) (any, error) {
	data, err := call.Bytes(p.Data)
	if err != nil {
		return nil, err
	}
	end := len(data)
	if p.End != nil {
		end = *p.End
	}
	part := data[p.Begin:end]
	for i, b := range part {
		part[i] = ^b
	}
	return call.AnswerBytes(part), nil
}

func main() {
	name := os.Getenv("ZENO_PLUGIN_NAME")
	if name == "" {
		name = "go-ring"
	}
	slot := func(slot, description string, inputs object, quick bool,
		run func(*zeno.Call, *parameters) (any, error)) zeno.Slot {
		return zeno.Slot{
			Name:        name + "." + slot,
			Description: description,
			Inputs:      inputs,
			Quick:       quick,
			Run: func(call *zeno.Call, raw json.RawMessage) (any, error) {
				calls.Add(1)
				var p parameters
				if err := json.Unmarshal(raw, &p); err != nil {
					return nil, err
				}
				return run(call, &p)
			},
		}
	}
	value := object{"value": object{"type": "any"}}
	text := object{"type": "string", "required": true}
	seconds := object{"type": "number", "required": true}
	lines := object{"type": "int", "default": 10}
	data := object{"type": "any", "required": true}
	part := object{"data": data, "begin": object{"type": "int"}, "end": object{"type": "int"}}
	err := zeno.Serve(name, "1.0.0", []zeno.Slot{
		slot("echo", "Answer the value as it came", value, true, echo),
		slot("later", "The same from a goroutine of its own", value, false, echo),
		slot("size", "Count a text's bytes", object{"text": text}, true, size),
		slot("fail", "Fail with a message", object{"message": text}, false, fail),
		slot("crash", "End without an answer", object{}, false, crash),
		slot("sleep", "Take a while", object{"seconds": seconds}, false, sleep),
		slot("spam", "Print noise, then answer", object{"lines": lines}, false, spam),
		slot("count", "Count the calls so far", object{}, true, count),
		slot("invert", "Invert every bit of some bytes", object{"data": data}, false, invert),
		slot("invert_in_place", "Invert them where they are", part, false, invertInPlace),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "go guest:", err)
		os.Exit(1)
	}
}
