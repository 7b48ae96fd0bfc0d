// The behaviour guest as a WASM module from Go's own compiler (wasip1, a reactor).
//
// Beside the slots that every guest has it has those of the WASI guests for variables and files.
// There is no `free`: memory from `alloc` is held until the call ends, then it is the collector's.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"
	"unsafe"
)

type request struct {
	SlotName   string `json:"slot_name"`
	Parameters struct {
		Value   json.RawMessage `json:"value"`
		Text    string          `json:"text"`
		Message string          `json:"message"`
		Seconds float64         `json:"seconds"`
		Lines   *int            `json:"lines"`
		Name    string          `json:"name"`
		Path    string          `json:"path"`
		Content string          `json:"content"`
	} `json:"parameters"`
}

type object = map[string]any

var (
	calls  int
	taken  [][]byte // by `alloc`, for the call to come
	answer []byte   // until the next call
)

//go:wasmimport env host_log
func hostLog(level unsafe.Pointer, levelSize uint32, text unsafe.Pointer, textSize uint32)

func log(level, text string) {
	hostLog(unsafe.Pointer(unsafe.StringData(level)), uint32(len(level)),
		unsafe.Pointer(unsafe.StringData(text)), uint32(len(text)))
}

//go:wasmexport alloc
func alloc(size uint32) unsafe.Pointer {
	block := make([]byte, size)
	taken = append(taken, block)
	return unsafe.Pointer(&block[0]) // traps where size is 0
}

func give(text []byte) unsafe.Pointer {
	answer = append(text, 0)
	return unsafe.Pointer(&answer[0])
}

func giveJSON(data any) unsafe.Pointer {
	text, err := json.Marshal(data)
	if err != nil {
		panic(err)
	}
	return give(text)
}

//go:wasmexport plugin_init
func pluginInit() unsafe.Pointer {
	debug.SetMemoryLimit(100 << 20) // collect before the host's limit is met
	return giveJSON(object{"name": "go-wasm", "version": "1.0.0", "author": "tests", "language": "Go"})
}

//go:wasmexport plugin_register_slots
func pluginRegisterSlots() unsafe.Pointer {
	text := object{"type": "string", "required": true}
	slot := func(slot, description string, inputs object) object {
		return object{"name": "go-wasm." + slot, "description": description, "inputs": inputs}
	}
	return giveJSON(object{"slots": []object{
		slot("echo", "Answer the value as it came", object{"value": object{"type": "any"}}),
		slot("size", "Count a text's bytes", object{"text": text}),
		slot("fail", "Fail with a message", object{"message": text}),
		slot("crash", "End without an answer", object{}),
		slot("sleep", "Take a while", object{"seconds": object{"type": "number", "required": true}}),
		slot("spam", "Print noise, then answer", object{"lines": object{"type": "int", "default": 10}}),
		slot("count", "Count the calls so far", object{}),
		slot("env", "Read a variable and count them all", object{"name": text}),
		slot("read", "Read a file", object{"path": text}),
		slot("write", "Write a file", object{"path": text, "content": text}),
	}})
}

func spam(lines int) int {
	for i := 0; i < lines; i++ {
		fmt.Printf("noise %d on stdout\n", i)
		fmt.Fprintf(os.Stderr, "noise %d on stderr\n", i)
		log("info", fmt.Sprintf("noise %d in the log", i))
	}
	return lines
}

func env(name string) any {
	found := object{"value": nil, "count": len(os.Environ())}
	if value, ok := os.LookupEnv(name); ok {
		found["value"] = value
	}
	return found
}

func run(call *request) (any, error) {
	calls++
	p := &call.Parameters
	switch call.SlotName[strings.LastIndexByte(call.SlotName, '.')+1:] {
	case "echo":
		if p.Value == nil {
			return nil, nil
		}
		return p.Value, nil
	case "size":
		return len(p.Text), nil
	case "fail":
		return nil, fmt.Errorf("%s", p.Message)
	case "crash":
		panic("go-wasm guest: crashing as it was told")
	case "sleep":
		for end := time.Now().Add(time.Duration(p.Seconds * float64(time.Second))); time.Now().Before(end); {
		}
		return p.Seconds, nil
	case "spam":
		lines := 10
		if p.Lines != nil {
			lines = *p.Lines
		}
		return spam(lines), nil
	case "count":
		return calls, nil
	case "env":
		return env(p.Name), nil
	case "read":
		content, err := os.ReadFile(p.Path)
		return string(content), err
	case "write":
		return len(p.Content), os.WriteFile(p.Path, []byte(p.Content), 0o666)
	}
	return nil, fmt.Errorf("unknown slot %s", call.SlotName)
}

//go:wasmexport plugin_execute
func pluginExecute(name unsafe.Pointer, nameSize uint32, text unsafe.Pointer, size uint32) unsafe.Pointer {
	var call request
	if err := json.Unmarshal(unsafe.Slice((*byte)(text), size), &call); err != nil {
		panic(err)
	}
	taken = nil
	data, err := run(&call)
	if err != nil {
		return giveJSON(object{"success": false, "error": err.Error()})
	}
	raw, ok := data.(json.RawMessage)
	if !ok {
		return giveJSON(object{"success": true, "data": data})
	}
	const head = `{"success":true,"data":`
	reply := make([]byte, 0, len(head)+len(raw)+2)
	return give(append(append(append(reply, head...), raw...), '}'))
}

//go:wasmexport plugin_cleanup
func pluginCleanup() {
	taken, answer = nil, nil
}

func main() {}
