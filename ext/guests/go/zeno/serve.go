package zeno

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
)

// Slot is something that a host may call.
type Slot struct {
	// Name is what hosts call it by: the plugin's name and its own, as in "image.blur".
	Name        string `json:"name"`
	Description string `json:"description"`
	// Inputs are the parameters, each by its name, as docs/manifest.md describes them.
	Inputs map[string]any `json:"inputs"`
	// Quick says that it takes microseconds and waits for nothing. It is run where messages are
	// received then, which saves a goroutine; no other call is begun meanwhile.
	Quick bool `json:"-"`
	// Run answers a call: with anything that encoding/json can write, or with an error whose text
	// is the caller's. Unless Quick, each call has a goroutine of its own.
	Run func(call *Call, parameters json.RawMessage) (any, error) `json:"-"`
}

// Call is one call of a slot, for as long as Run works on it. One goroutine at a time uses it.
type Call struct {
	link  *Link
	taken []*Bytes
	parts []part
}

// Serve answers calls through the standard streams, or shared memory where the host offers it.
//
// The name is the plugin's. It returns nil when the host wants no more, even while calls are still
// being worked on; a plugin ends then. The process ends at once where an answer cannot be sent.
func Serve(name, version string, slots []Slot) error { return Open().Serve(name, version, slots) }

// Serve does what the function Serve does, on a link on which nothing was sent.
func (link *Link) Serve(name, version string, slots []Slot) error {
	slots = append([]Slot{}, slots...)
	byName := make(map[string]*Slot, len(slots))
	for index := range slots {
		if slots[index].Inputs == nil {
			slots[index].Inputs = map[string]any{}
		}
		byName[slots[index].Name] = &slots[index]
	}
	own := func(answer any) *Slot {
		return &Slot{Quick: true, Run: func(*Call, json.RawMessage) (any, error) {
			return answer, nil
		}}
	}
	byName["plugin_init"] = own(map[string]any{
		"name": name, "version": version, "language": "Go", "protocol": 1,
		"features": link.features(),
	})
	byName["plugin_register_slots"] = own(slots)
	for {
		message, err := link.Receive()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		request, err := parseRequest(message)
		if err != nil {
			fmt.Fprintf(os.Stderr, "zeno: no message: %v: %.200s\n", err, message)
			continue
		}
		if request.SlotName == "" {
			if request.Type == "forget_buffers" {
				for _, id := range request.Buffers {
					link.ForgetBuffer(id)
				}
			}
			continue // what else the host says that is no call needs no answer either
		}
		slot := byName[request.SlotName]
		if slot != nil && !slot.Quick {
			go link.answerOrEnd(slot, request)
			runtime.Gosched() // to it, which is what the host waits for
			continue
		}
		if err := link.answer(slot, request); err != nil {
			return err
		}
		if request.SlotName == "plugin_init" {
			link.UseRing()
		}
	}
}

func (link *Link) features() []string {
	features := []string{"binary"}
	if link.OffersRing() {
		features = append(features, "shm")
	}
	if link.OffersArena() {
		features = append(features, "arena")
	}
	if link.OffersBuffers() {
		features = append(features, "buffers")
	}
	return features
}

// answerOrEnd runs a slot, and ends a process that can answer no more.
func (link *Link) answerOrEnd(slot *Slot, request request) {
	if err := link.answer(slot, request); err != nil {
		fmt.Fprintln(os.Stderr, "zeno: no answer can be sent:", err)
		os.Exit(1)
	}
}

// answer runs a slot, or none where it is nil, and sends what came of it.
func (link *Link) answer(slot *Slot, request request) error {
	call := Call{link: link}
	begin := make([]byte, 0, 512)
	begin = append(begin, `{"type":"guest_response","id":`...)
	begin = append(begin, request.ID...)
	message, err := call.run(slot, request, begin)
	if err != nil {
		text, _ := json.Marshal(err.Error())
		message = append(append(append(begin, `,"success":false,"error":`...), text...), '}')
	}
	for _, bytes := range call.taken {
		if bytes.room != nil && (err != nil || !bytes.sent) {
			link.DropBytes(bytes.offset)
		}
	}
	for _, part := range call.parts {
		link.buffers.release(part.buffer)
	}
	return link.Send(message)
}

// run appends what a slot answers.
func (call *Call) run(slot *Slot, request request, to []byte) ([]byte, error) {
	if slot == nil {
		return nil, fmt.Errorf("unknown slot %s", request.SlotName)
	}
	data, err := slot.Run(call, request.Parameters)
	if err != nil {
		return nil, err
	}
	to = append(to, `,"success":true,"data":`...)
	switch data := data.(type) {
	case json.RawMessage: // encoding/json would copy it, and escape what needs no escapes
		if data == nil {
			data = json.RawMessage("null")
		}
		to = append(to, data...)
	case *Bytes:
		to = data.appendTo(to)
	default:
		text, err := json.Marshal(data)
		if err != nil {
			return nil, err
		}
		to = append(to, text...)
	}
	if call.taken != nil {
		to = append(to, `,"binary":true`...)
	}
	return append(to, '}'), nil
}
