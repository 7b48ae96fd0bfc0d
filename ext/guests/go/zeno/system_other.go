//go:build !linux || !(amd64 || arm64 || loong64 || mips64le || ppc64le || riscv64)

package zeno

// Here no memory is shared, and everything goes through lines.

func mapMemory(int, int) []byte { return nil }

func unmapMemory([]byte) {}

func openSocket(string) int { return -1 }

func receiveBuffer(int) (*buffer, bool) { return nil, false }

func yieldProcessor() {}
