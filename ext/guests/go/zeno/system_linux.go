//go:build amd64 || arm64 || loong64 || mips64le || ppc64le || riscv64

package zeno

import "syscall"

// mapMemory maps what another process shares under a descriptor; nil where that fails.
func mapMemory(fd, size int) []byte {
	memory, err := syscall.Mmap(
		fd, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil
	}
	return memory
}

// yieldProcessor lets other threads go first, as the host's where it has to share a processor. It
// does not wait, so that Go's scheduler need not know of it.
func yieldProcessor() { syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0) }
