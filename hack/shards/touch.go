package shards

import (
	"errors"
	"os"
)

// Touch uses size bytes of memory for the pages of a new file, which it removes again. In a virtual machine the first use of a page may cost a fault in the
// hypervisor, ten times as much as the write itself, and whether it does depends on who ran before: benchmarks that write call it before each run.
func Touch(path string, size int64) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for written := int64(0); written < size; written += int64(len(buf)) {
		if _, err := file.Write(buf); err != nil {
			return errors.Join(err, file.Close(), os.Remove(path))
		}
	}
	return errors.Join(file.Close(), os.Remove(path))
}
