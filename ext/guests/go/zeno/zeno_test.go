package zeno

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// pair returns the two ends of a link with rings of the least size, the host's first.
func pair(t *testing.T) (host, guest *Link) {
	memory := make([]byte, ringsAt+2*minRing+1<<16)
	copy(memory, "ZENOSHM\x00")
	for at, value := range map[int]int{
		8: version, 12: minRing, 16: ringsAt + 2*minRing, 24: 1 << 16,
	} {
		memory[at], memory[at+1], memory[at+2] = byte(value), byte(value>>8), byte(value>>16)
	}
	shared, ok := readSegment(memory)
	if !ok {
		t.Fatal("the segment is not understood")
	}
	toGuest, fromHost, _ := os.Pipe()
	toHost, fromGuest, _ := os.Pipe()
	host, guest = newLink(toHost, fromHost), newLink(toGuest, fromGuest)
	guest.segment = shared
	guest.hostArena, guest.arena.memory = memory[:ringsAt], shared.arena
	shared.toGuest, shared.toHost = shared.toHost, shared.toGuest
	host.segment = shared
	host.UseRing()
	guest.UseRing()
	t.Cleanup(func() {
		for _, file := range []*os.File{toGuest, fromHost, toHost, fromGuest} {
			file.Close()
		}
	})
	return host, guest
}

// Each message comes back from one of several goroutines, while both sides wait in every way: for
// messages, for room, and for both at once.
func TestNoWakeUpIsLost(t *testing.T) {
	t.Run("waiting awake first", func(t *testing.T) { exchange(t, 10000, 0) })
	t.Run("sleeping at once", func(t *testing.T) { exchange(t, 30000, 1<<30) })
}

func exchange(t *testing.T, rounds, skip int) {
	const senders = 4
	host, guest := pair(t)
	host.patience.skip, guest.patience.skip = skip, skip
	queue := make(chan []byte)
	for range senders {
		go func() {
			for message := range queue {
				if err := guest.Send(message); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	go func() {
		defer close(queue)
		for {
			message, err := guest.Receive()
			if err != nil {
				if err != io.EOF {
					t.Error(err)
				}
				return
			}
			queue <- message
		}
	}()
	var sum, expected [256]int
	var sending sync.WaitGroup
	sending.Add(1)
	go func() {
		defer sending.Done()
		for round := range rounds {
			nbytes := 1 + rand.IntN(100)
			switch round % 50 {
			case 7:
				nbytes = rand.IntN(20*minRing) + 1
			case 9:
				time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
			}
			message := bytes.Repeat([]byte{byte(round)}, nbytes)
			expected[byte(round)] += nbytes
			if err := host.Send(message); err != nil {
				t.Error(err)
			}
		}
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range rounds {
			message, err := host.Receive()
			if err != nil {
				t.Error(err)
				return
			}
			if bytes.Count(message, message[:1]) != len(message) {
				t.Error("parts of several messages came as one")
			}
			sum[message[0]] += len(message)
		}
	}()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		t.Fatal("both sides sleep")
	}
	sending.Wait()
	if sum != expected {
		t.Error("not all that was sent came back")
	}
	host.output.Close() // the guest's input ends
}

// With one message at a time nothing comes later that would wake whom the last one did not. Each
// is sent at about the moment when the other side goes to sleep.
func TestNoWakeUpIsLostWhenNothingFollows(t *testing.T) {
	t.Run("small", func(t *testing.T) { takeTurns(t, 60000, 8) })
	t.Run("larger than the ring", func(t *testing.T) { takeTurns(t, 6000, 3*minRing) })
}

func takeTurns(t *testing.T, rounds, nbytes int) {
	host, guest := pair(t)
	host.patience.skip, guest.patience.skip = 1<<30, 1<<30
	done := make(chan error)
	go func() {
		for {
			message, err := guest.Receive()
			if err != nil {
				return
			}
			dawdle()
			guest.Send(message)
			dawdle() // while the host wakes up, so that it may send just when this side sleeps
		}
	}()
	go func() {
		message := make([]byte, nbytes)
		for range rounds {
			dawdle()
			host.Send(message)
			if answer, err := host.Receive(); err != nil || len(answer) != nbytes {
				done <- fmt.Errorf("%d bytes, %v", len(answer), err)
				return
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("both sides sleep")
	}
	host.output.Close()
}

// dawdle does nothing for up to ten microseconds, about as long as waking up takes.
func dawdle() {
	until := time.Now().Add(time.Duration(rand.IntN(10000)))
	for time.Now().Before(until) {
	}
}

func TestAByteThatAnotherHasReadWakesAllTheSame(t *testing.T) {
	input, output, _ := os.Pipe()
	defer input.Close()
	var sleeper sleeper
	sleeper.open(input)
	before := sleeper.count()
	output.Write(lineEnd)
	if !sleeper.sleep(before) || !sleeper.sleep(before) { // the second finds no byte
		t.Error("the input has ended")
	}
	both := make(chan bool)
	for range 2 {
		go func(wakes uint64) { both <- sleeper.sleep(wakes) }(sleeper.count())
	}
	time.Sleep(10 * time.Millisecond)
	output.Write(lineEnd)
	if !<-both || !<-both {
		t.Error("the input has ended")
	}
	output.Close()
	if sleeper.sleep(sleeper.count()) || sleeper.sleep(sleeper.count()) {
		t.Error("the input has not ended")
	}
}

func TestReceiveEndsWithItsInput(t *testing.T) {
	host, guest := pair(t)
	host.Send([]byte("last"))
	host.output.Close()
	if message, err := guest.Receive(); string(message) != "last" || err != nil {
		t.Error(string(message), err)
	}
	for range 2 {
		if _, err := guest.Receive(); err != io.EOF {
			t.Error(err)
		}
	}
	if err := guest.Send(make([]byte, 10*minRing)); err != errGone {
		t.Error(err)
	}
}

func TestWhatCannotBeIsAnError(t *testing.T) {
	for _, lie := range []func(*reader){
		func(reader *reader) { *reader.sharedHead = minRing + 8 },
		func(reader *reader) { *reader.sharedHead = 3 },
		func(reader *reader) { *reader.sharedHead -= 8 },
		func(reader *reader) { *reader.sharedHead, reader.data[0] = 8, 1 },
		func(reader *reader) { *reader.sharedHead, reader.data[4] = 8, 2 },
	} {
		_, guest := pair(t)
		lie(&guest.reader)
		if _, err := guest.Receive(); err != errCorrupt {
			t.Error(err)
		}
	}
	_, guest := pair(t)
	*guest.writer.sharedTail = 1 << 40
	if err := guest.Send(make([]byte, minRing)); err != errCorrupt {
		t.Error(err)
	}
}

func TestRoomIsTakenAndGivenBack(t *testing.T) {
	_, guest := pair(t)
	offsets := map[uint64]bool{}
	for {
		room, offset, ok := guest.NewBytes(1000)
		if !ok {
			break
		}
		if len(room) != 1000 || cap(room) != 1000 || offset%64 != 0 || offsets[offset] {
			t.Fatal(len(room), cap(room), offset)
		}
		offsets[offset] = true
	}
	if len(offsets) != 1<<16/(1024+64) {
		t.Error(len(offsets))
	}
	for offset := range offsets {
		guest.DropBytes(offset)
		if _, again, ok := guest.NewBytes(1000); !ok || again != offset {
			t.Error(again, offset)
		}
	}
	for _, nbytes := range []int{-1, 1 << 16, 1 << 30} {
		if _, _, ok := guest.NewBytes(nbytes); ok {
			t.Error(nbytes)
		}
	}
	for _, place := range [][2]uint64{
		{ringsAt, 1}, {0, ringsAt + 1}, {1 << 63, 1 << 63}, {8, ^uint64(0)},
	} {
		if _, err := guest.Bytes(place[0], place[1]); err == nil {
			t.Error(place)
		}
	}
}

func TestBytesGoIntoTheRoomOnce(t *testing.T) {
	_, guest := pair(t)
	call := Call{link: guest}
	answer := call.NewBytes(3)
	copy(answer.Data, "abc")
	answer.Type, answer.Shape = "|u1", []int{3}
	first, _ := json.Marshal(answer)
	second, _ := json.Marshal(answer)
	if string(first) != `{"$bytes":[12352,3],"dtype":"|u1","shape":[3]}` ||
		string(second) != `{"$bytes":"YWJj","dtype":"|u1","shape":[3]}` {
		t.Error(string(first), string(second))
	}
	other := call.NewBytes(3)
	other.Data = []byte("other")
	if text, _ := json.Marshal(other); string(text) != `{"$bytes":"b3RoZXI="}` {
		t.Error(string(text))
	}
}

func TestSegmentsThatAreNotUnderstoodAreLeftAlone(t *testing.T) {
	host, _ := pair(t)
	for at, value := range map[int]byte{0: 'z', 8: 2, 13: 0x11, 16: 1, 18: 1, 26: 2, 31: 0x80} {
		memory := bytes.Clone(host.segment.memory)
		memory[at] = value
		if _, ok := readSegment(memory); ok {
			t.Error(at)
		}
	}
	for _, announced := range []string{
		"", ":", "x:8192", "1", "1:", "1:10", "-1:8192", "1:99999999999999999999",
	} {
		if attachMemory(announced) != nil {
			t.Error(announced)
		}
	}
}

func TestRequestsAreReadAlikeInBothWays(t *testing.T) {
	for _, parameters := range []string{
		`{}`, `1`, `null`, `"a"`, `""`, `"\""`, `"\\"`, `"\\\""`, `[]`, `[[],{}]`, `{"a":"}"}`,
		`{"a":["]","\"]"],"b":{"c":-1.5e3}}`, `{"Zürich":"\u2028"}`, `[1,2]`, `{"a\\":"\\"}`,
	} {
		for _, rest := range []string{
			`}`, `,"timeout_ms":5}`, `,"binary":true,"context":{"a":"}"}}`,
		} {
			text := `{"type":"guest_call","id":"z1.2","slot_name":"a.b","parameters":` +
				parameters + rest
			usual, ok := parseUsual([]byte(text))
			var other request
			if err := json.Unmarshal([]byte(text), &other); err != nil {
				t.Fatal(err)
			}
			if !ok || string(usual.ID) != string(other.ID) || usual.SlotName != other.SlotName ||
				string(usual.Parameters) != string(other.Parameters) {
				t.Error(text, usual, other)
			}
			for end := range text { // cut off anywhere, it is no worse than an error
				parseRequest([]byte(text[:end]))
			}
		}
	}
	for _, text := range []string{
		`{"id":1,"type":"guest_call","slot_name":"a.b","parameters":{}}`,
		`{"type":"guest_call","id":"\"","slot_name":"a.b","parameters":{}}`,
		`{"type":"guest_call","id":"","slot_name":"a\u002eb","parameters":{}}`,
	} {
		if call, err := parseRequest([]byte(text)); err != nil || call.SlotName != "a.b" {
			t.Error(text, call, err)
		}
	}
	call, err := parseRequest([]byte(`{"type":"cancel","id":"z"}`))
	if err != nil || call.SlotName != "" {
		t.Error(call, err)
	}
	call, err = parseRequest([]byte(`{"type":"forget_buffers","buffers":[1,18446744073709551615]}`))
	if err != nil || call.SlotName != "" || call.Type != "forget_buffers" ||
		!slices.Equal(call.Buffers, []uint64{1, 1<<64 - 1}) {
		t.Error(call, err)
	}
}
