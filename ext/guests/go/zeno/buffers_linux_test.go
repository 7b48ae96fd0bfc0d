//go:build amd64 || arm64 || loong64 || mips64le || ppc64le || riscv64

package zeno

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// giver is the host's end of the socket through which buffers come.
type giver struct {
	t      *testing.T
	socket int
}

// giving returns a guest's link, and who gives it buffers.
func giving(t *testing.T) (*Link, giver) {
	_, guest := pair(t)
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for id := range guest.buffers.taken {
			guest.ForgetBuffer(id)
		}
		syscall.Close(ends[0])
		syscall.Close(ends[1])
	})
	guest.buffers.socket = openSocket(strconv.Itoa(ends[1]))
	if !guest.OffersBuffers() {
		t.Fatal("no buffers are offered")
	}
	return guest, giver{t, ends[0]}
}

// give sends a file of so many bytes as a buffer of so many, and returns it.
func (giver giver) give(id uint64, nbytes int64, announced uint64) *os.File {
	file, err := os.CreateTemp(giver.t.TempDir(), "buffer")
	if err != nil || file.Truncate(nbytes) != nil {
		giver.t.Fatal(err)
	}
	giver.t.Cleanup(func() { file.Close() })
	giver.send(id, announced, syscall.UnixRights(int(file.Fd())))
	return file
}

func (giver giver) send(id, nbytes uint64, attached []byte) {
	about := binary.NativeEndian.AppendUint64(nil, id)
	about = binary.NativeEndian.AppendUint64(about, nbytes)
	if err := syscall.Sendmsg(giver.socket, about, attached, nil, 0); err != nil {
		giver.t.Fatal(err)
	}
}

// mapped tells how often a file is mapped.
func mapped(file *os.File) int {
	maps, _ := os.ReadFile("/proc/self/maps")
	return strings.Count(string(maps), file.Name())
}

// descriptors tells how many this process has to a file.
func descriptors(file *os.File) (count int) {
	links, _ := os.ReadDir("/proc/self/fd")
	for _, link := range links {
		if name, _ := os.Readlink("/proc/self/fd/" + link.Name()); name == file.Name() {
			count++
		}
	}
	return count
}

func place(offset, nbytes, id uint64) json.RawMessage {
	return fmt.Appendf(nil, `{"$bytes":[%d,%d,%d]}`, offset, nbytes, id)
}

func TestBuffersAreTakenOnceInWhateverOrderTheyAreAskedFor(t *testing.T) {
	guest, host := giving(t)
	first, second := host.give(1, 8192, 8192), host.give(2, 100, 100)
	for range 2 {
		for id, size := range map[uint64]uint64{1: 8192, 2: 100} {
			bytes, err := guest.BufferBytes(id, 1, size-1)
			if err != nil || len(bytes) != int(size-1) || cap(bytes) != len(bytes) {
				t.Fatal(len(bytes), err)
			}
			bytes[0] = byte(id)
		}
	}
	var seen [2]byte
	first.ReadAt(seen[:1], 1)
	second.ReadAt(seen[1:], 1)
	if seen != [2]byte{1, 2} {
		t.Error("what was written is not in the host's memory", seen)
	}
	if mapped(first) != 1 || mapped(second) != 1 || descriptors(first) != 1 {
		t.Error(mapped(first), mapped(second), descriptors(first))
	}
}

func TestPlacesOutsideOfABufferAreErrors(t *testing.T) {
	guest, host := giving(t)
	host.give(7, 100, 100)
	call := Call{link: guest}
	for _, parameter := range []json.RawMessage{
		place(0, 101, 7), place(100, 1, 7), place(101, 0, 7), place(1<<63, 1<<63, 7),
		place(8, ^uint64(0), 7), []byte(`{"$bytes":[0,-1,7]}`), []byte(`{"$bytes":[0,1,7,0]}`),
		[]byte(`{"$bytes":[0,1,"7"]}`), []byte(`{"$bytes":[0]}`), []byte(`{"$bytes":[0,0.5,7]}`),
	} {
		if bytes, err := call.Bytes(parameter); err == nil {
			t.Error(string(parameter), len(bytes))
		}
	}
	for _, within := range [][2]uint64{{0, 100}, {99, 1}, {100, 0}} {
		if _, err := call.Bytes(place(within[0], within[1], 7)); err != nil {
			t.Error(within, err)
		}
	}
}

func TestABufferThatCannotBeHadIsAnError(t *testing.T) {
	guest, host := giving(t)
	host.give(1, 100, 4096*3) // to look behind its end would be a fault
	host.give(2, 100, 1<<63)
	host.send(3, 100, nil) // as where this process may open no more
	host.give(4, 1, 0)     // the host's of no bytes have one
	began := time.Now()
	for id := range uint64(3) {
		if _, err := guest.BufferBytes(id+1, 0, 0); err == nil {
			t.Error(id + 1)
		}
		guest.ForgetBuffer(id + 1)
	}
	if bytes, err := guest.BufferBytes(4, 0, 0); err != nil || len(bytes) != 0 {
		t.Error(bytes, err)
	}
	if took := time.Since(began); took > time.Second/2 {
		t.Error("it was waited for:", took)
	}
}

func TestABufferThatDoesNotComeIsWaitedForForAWhile(t *testing.T) {
	guest, host := giving(t)
	began := time.Now()
	if _, err := guest.BufferBytes(1, 0, 0); err == nil {
		t.Error("nobody has given it")
	}
	if took := time.Since(began); took < time.Second/2 || took > 10*time.Second {
		t.Error(took)
	}
	time.AfterFunc(50*time.Millisecond, func() { host.give(1, 100, 100) })
	if _, err := guest.BufferBytes(1, 0, 100); err != nil {
		t.Error(err)
	}
	syscall.Shutdown(host.socket, syscall.SHUT_RDWR)
	if _, err := guest.BufferBytes(2, 0, 0); err == nil {
		t.Error("nobody can have given it")
	}
}

func TestAForgottenBufferIsUnmapped(t *testing.T) {
	guest, host := giving(t)
	used, untaken := host.give(1, 100, 100), host.give(2, 100, 100)
	guest.BufferBytes(1, 0, 100)
	guest.ForgetBuffer(1)
	guest.ForgetBuffer(2)
	if mapped(used) != 0 || mapped(untaken) != 0 || len(guest.buffers.taken) != 0 {
		t.Error(mapped(used), mapped(untaken), guest.buffers.taken)
	}
	if descriptors(used) != 1 || descriptors(untaken) != 1 {
		t.Error(descriptors(used), descriptors(untaken))
	}
}

func TestABufferThatIsForgottenWhileACallIsAtWorkGoesWithTheCall(t *testing.T) {
	guest, host := giving(t)
	file := host.give(1, 100, 100)
	began, goOn := make(chan bool), make(chan bool)
	slot := Slot{Run: func(call *Call, parameter json.RawMessage) (any, error) {
		first, _ := call.Bytes(parameter)
		second, err := call.Bytes(parameter)
		began <- true
		<-goOn
		first[0], second[99] = 1, 2
		return nil, err
	}}
	answered := make(chan error)
	go func() { answered <- guest.answer(&slot, request{Parameters: place(0, 100, 1)}) }()
	<-began
	guest.ForgetBuffer(1)
	if mapped(file) != 1 {
		t.Error("it was unmapped")
	}
	goOn <- true
	if err := <-answered; err != nil || mapped(file) != 0 {
		t.Error(err, mapped(file))
	}
}

func TestBuffersAreTakenAndForgottenByManyGoroutinesAtOnce(t *testing.T) {
	guest, host := giving(t)
	var all sync.WaitGroup
	for id := range uint64(50) {
		host.give(id, 1, 1)
		all.Add(1)
		go func() {
			defer all.Done()
			slot := Slot{Run: func(call *Call, parameter json.RawMessage) (any, error) {
				bytes, err := call.Bytes(parameter)
				if err == nil {
					bytes[0] = byte(id)
				}
				return nil, err
			}}
			call := Call{link: guest}
			if _, err := call.run(&slot, request{Parameters: place(0, 1, id)}, nil); err != nil {
				t.Error(id, err)
			}
			guest.ForgetBuffer(id)
			for _, part := range call.parts {
				guest.buffers.release(part.buffer)
			}
		}()
	}
	all.Wait()
	if len(guest.buffers.taken) != 0 {
		t.Error(guest.buffers.taken)
	}
}

func TestPartsOfABufferAreAnsweredByWhereTheyLie(t *testing.T) {
	guest, host := giving(t)
	host.give(5, 8192, 8192)
	call := Call{link: guest}
	data, err := call.Bytes(place(4096, 1000, 5))
	if err != nil {
		t.Fatal(err)
	}
	typed := call.AnswerBytes(data[4:12:12])
	typed.Type, typed.Shape = "<f4", []int{2}
	put := call.NewBytes(3)
	put.Data = data[999:]
	other := call.NewBytes(3)
	other.Data = []byte("abc")
	elsewhere, _ := guest.BufferBytes(5, 0, 3) // not in a parameter of this call
	for text, bytes := range map[string]*Bytes{
		`{"$bytes":[4096,1000,5]}`:                             call.AnswerBytes(data),
		`{"$bytes":[4100,8,5],"dtype":"\u003cf4","shape":[2]}`: typed,
		`{"$bytes":[5095,1,5]}`:                                put,
		`{"$bytes":"YWJj"}`:                                    other,
		`{"$bytes":""}`:                                        {Data: data[:0]},
		`{"$bytes":"AA=="}`:                                    {Data: data[:1]}, // of no call
		`{"$bytes":[12608,3]}`:                                 call.AnswerBytes(elsewhere),
	} {
		if got := string(bytes.appendTo(nil)); got != text {
			t.Error(got, text)
		}
	}
	if again := string(put.appendTo(nil)); again != `{"$bytes":[5095,1,5]}` {
		t.Error(again)
	}
	if len(call.taken) != 5 {
		t.Error("the answer would not be marked as one with bytes")
	}
}

func TestADescriptorThatIsNoSocketIsNotMadeUseOf(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "file")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, announced := range []string{"", "x", "-1", "99999", strconv.Itoa(int(file.Fd()))} {
		if socket := openSocket(announced); socket != -1 {
			t.Error(announced, socket)
		}
	}
}
