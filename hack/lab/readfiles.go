package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// readFilesName is the command by which the lab runs itself as a program that reads files.
const readFilesName = "read-files"

// filesRead is what that program prints.
type filesRead struct {
	Seconds float64 `json:"seconds"` // from the first open to the last byte
	Bytes   int64   `json:"bytes"`
	Sum     uint64  `json:"sum"` // of all bytes, taken as little-endian words
}

func readFilesCommand() *cli.Command {
	return &cli.Command{
		Name:      readFilesName,
		Hidden:    true,
		Usage:     "read files one after the other and print the seconds; a process of its own for the benchmarks",
		ArgsUsage: "FILE...",
		Flags:     []cli.Flag{&cli.BoolFlag{Name: "mmap", Usage: "map them and add up every word"}},
		Action: func(ctx *cli.Context) error {
			read := readFile
			if ctx.Bool("mmap") {
				read = mapFile
			}
			var all filesRead
			began := time.Now()
			for _, name := range ctx.Args().Slice() {
				if err := read(name, &all); err != nil {
					return err
				}
			}
			all.Seconds = time.Since(began).Seconds()
			return json.NewEncoder(ctx.App.Writer).Encode(all)
		},
	}
}

// readFile reads a file in steps of 1 MiB, as most loaders do that do not map, and looks at nothing.
func readFile(name string, all *filesRead) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	all.Bytes += n
	return err
}

// mapFile maps a file and adds up its words.
func mapFile(name string, all *filesRead) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", name, err)
	}
	for ; len(data) >= 8; data = data[8:] {
		all.Sum += binary.LittleEndian.Uint64(data)
	}
	all.Bytes += info.Size()
	return nil // the mapping ends with the process
}

// readFiles runs this program as one that reads the files, all of which together have size bytes.
func readFiles(ctx context.Context, files []string, size int64, flags ...string) (read filesRead, err error) {
	self, err := os.Executable()
	if err != nil {
		return read, err
	}
	cmd := exec.CommandContext(ctx, self, append(append([]string{readFilesName}, flags...), files...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return read, fmt.Errorf("%s %s: %w", readFilesName, files[0], err)
	}
	if err := json.Unmarshal(out, &read); err != nil {
		return read, err
	}
	if read.Bytes < size {
		return read, fmt.Errorf("%s %s: %d bytes of %d", readFilesName, files[0], read.Bytes, size)
	}
	return read, nil
}
