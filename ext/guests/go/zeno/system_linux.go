//go:build amd64 || arm64 || loong64 || mips64le || ppc64le || riscv64

package zeno

import (
	"encoding/binary"
	"strconv"
	"syscall"
	"time"
)

// mapMemory maps what another process shares under a descriptor; nil where that fails.
func mapMemory(fd, size int) []byte {
	var about syscall.Stat_t
	if syscall.Fstat(fd, &about) != nil || about.Size < int64(size) {
		return nil // to look behind its end would be a fault
	}
	memory, err := syscall.Mmap(
		fd, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil
	}
	return memory
}

// unmapMemory undoes mapMemory, also where that failed.
func unmapMemory(memory []byte) { syscall.Munmap(memory) }

// openSocket returns the announced descriptor, from which nobody waits for longer than a second
// from now on; -1 where it is no socket.
func openSocket(announced string) int {
	fd, err := strconv.Atoi(announced)
	if err != nil {
		return -1
	}
	wait := syscall.Timeval{Sec: 1}
	if syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait) != nil {
		return -1
	}
	return fd
}

// receiveBuffer takes the next buffer that the host has given; false where nothing comes within a
// second, nil where that is none. One whose descriptor was lost on the way, because there are too
// many, is without memory.
func receiveBuffer(socket int) (*buffer, bool) {
	var about [16]byte // the id and the size
	control := make([]byte, syscall.CmsgSpace(4))
	deadline := time.Now().Add(time.Second)
	var nbytes, attached int
	for {
		var err error
		nbytes, attached, _, _, err = syscall.Recvmsg(
			socket, about[:], control, syscall.MSG_CMSG_CLOEXEC)
		if err == nil {
			break
		}
		if err != syscall.EINTR || time.Now().After(deadline) {
			return nil, false
		}
	}
	came := &buffer{id: binary.NativeEndian.Uint64(about[:])}
	size := max(1, binary.NativeEndian.Uint64(about[8:])) // nothing cannot be mapped
	messages, _ := syscall.ParseSocketControlMessage(control[:attached])
	for _, message := range messages {
		descriptors, _ := syscall.ParseUnixRights(&message)
		for _, fd := range descriptors {
			if came.memory == nil && nbytes == len(about) {
				came.memory = mapMemory(fd, int(size))
			}
			syscall.Close(fd)
		}
	}
	if nbytes != len(about) {
		return nil, nbytes > 0
	}
	return came, true
}

// yieldProcessor lets other threads go first, as the host's where it has to share a processor. It
// does not wait, so that Go's scheduler need not know of it.
func yieldProcessor() { syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0) }
