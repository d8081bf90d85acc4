package fanotify

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A slot has room for exactly one event as the kernel writes it, and behind it for the file it is about:
//
//	 0  u32  length of the event; zero: the slot is free
//	 4  u8   version, then a byte unused, u16 length of the metadata
//	 8  u64  mask
//	16  i32  number of the event's file descriptor
//	20  i32  process that reads
//	24       records; of type 6: u8 type, u8, u16 length, u32, u64 offset, u64 length of the range
//	48  u64  device of the file, by us, as are
//	56  u64  its inode; zero: whoever read the event died before noting it
const (
	slotSize     = 64
	slots        = 1 << 14
	metadataSize = 24
	identity     = 48
)

const logName = "fanotify-log"

// eventLog is the slots in a file in memory. The free ones are known to the process only.
type eventLog struct {
	file *os.File
	mem  []byte

	mu   sync.Mutex // guards free
	free []int
}

// newLog returns an empty log.
func newLog() (*eventLog, error) {
	fd, err := unix.MemfdCreate(logName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), logName)
	if err := file.Truncate(slots * slotSize); err != nil {
		_ = file.Close() // nothing is in it
		return nil, err
	}
	return openLog(file)
}

// openLog maps a log, which it closes on an error.
func openLog(file *os.File) (*eventLog, error) {
	info, err := file.Stat()
	if err == nil && info.Size() != slots*slotSize {
		err = fmt.Errorf("log of events: %d bytes, want %d", info.Size(), slots*slotSize)
	}
	var mem []byte
	if err == nil {
		mem, err = unix.Mmap(int(file.Fd()), 0, slots*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		_ = file.Close() // nothing was written
		return nil, err
	}
	l := &eventLog{file: file, mem: mem}
	for i := slots - 1; i >= 0; i-- {
		if l.slot(i).length() == 0 {
			l.free = append(l.free, i)
		}
	}
	return l, nil
}

func (l *eventLog) close() error {
	err := l.file.Close()
	if err == nil { // not closed before
		err = os.NewSyscallError("munmap", unix.Munmap(l.mem))
	}
	return err
}

func (l *eventLog) slot(i int) slot { return slot(l.mem[i*slotSize:][:slotSize:slotSize]) }

// take returns a free slot and how many are left.
func (l *eventLog) take() (i, left int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.free) - 1
	if n < 0 {
		return 0, 0, false
	}
	i = l.free[n]
	l.free = l.free[:n]
	return i, n, true
}

// clear frees a slot.
func (l *eventLog) clear(i int) {
	clear(l.slot(i)[:4])
	clear(l.slot(i)[4:])
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = append(l.free, i)
}

// taken returns the slots with an event.
func (l *eventLog) taken() (out []int) {
	for i := range slots {
		if l.slot(i).length() != 0 {
			out = append(out, i)
		}
	}
	return out
}

type slot []byte

func (s slot) length() int { return int(binary.NativeEndian.Uint32(s)) }
func (s slot) fd() int     { return int(int32(binary.NativeEndian.Uint32(s[16:]))) }
func (s slot) pid() int    { return int(int32(binary.NativeEndian.Uint32(s[20:]))) }

// note adds the file to an event.
func (s slot) note(f File) {
	binary.NativeEndian.PutUint64(s[identity:], f.Dev)
	binary.NativeEndian.PutUint64(s[identity+8:], f.Ino)
}

// identify notes the file of an event that this process has read.
func (s slot) identify() {
	if f, err := fileOf(s.fd()); err == nil { // it is open
		s.note(f)
	}
}

// event reads the slot. An event without a range is about the whole file.
func (s slot) event() Event {
	e := Event{Len: math.MaxInt64}
	e.File = File{Dev: binary.NativeEndian.Uint64(s[identity:]), Ino: binary.NativeEndian.Uint64(s[identity+8:])}
	at := int(binary.NativeEndian.Uint16(s[6:]))
	if at < metadataSize || at+24 > min(s.length(), identity) || s[at] != unix.FAN_EVENT_INFO_TYPE_RANGE {
		return e
	}
	off, count := binary.NativeEndian.Uint64(s[at+8:]), binary.NativeEndian.Uint64(s[at+16:])
	e.Off = int64(min(off, math.MaxInt64))
	e.Len = int64(min(count, uint64(math.MaxInt64-e.Off)))
	return e
}

// encodeResponse returns an answer as the kernel reads it.
func encodeResponse(r unix.FanotifyResponse) (out [8]byte) {
	binary.NativeEndian.PutUint32(out[:], uint32(r.Fd))
	binary.NativeEndian.PutUint32(out[4:], r.Response)
	return out
}
