package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrExited is returned by waits for a process that is no more.
var ErrExited = errors.New("process exited")

// userHZ is the unit of CPU times in /proc, the same on all architectures Go runs on.
const userHZ = 100

// A Process is a program running on a host. Its output goes to a file.
type Process struct {
	name string
	log  string // path
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been waited for
	err  error         // of Wait; valid once done is closed
}

// startProcess runs argv in the namespace, in a session of its own so that a terminal's Ctrl-C reaches only the lab.
func startProcess(ns namespace, name, log string, argv, env []string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close()                         // the child has its own
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // it lives until Kill or Stop, not until a context ends
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := ns.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{name: name, log: log, cmd: cmd, done: make(chan struct{})}
	go func() { // ends with the process; Kill and Stop wait for it
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Name returns the name the process was started under.
func (p *Process) Name() string { return p.name }

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log returns the path of the file that has the process's output.
func (p *Process) Log() string { return p.log }

// Done is closed once the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// alive reports whether the process has not ended.
func (p *Process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// OpenFiles returns how many descriptors the process has open; 0 when it has ended.
func (p *Process) OpenFiles() int {
	entries, err := os.ReadDir("/proc/" + strconv.Itoa(p.PID()) + "/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}

// LimitFiles changes how many descriptors the process may have open from now on.
func (p *Process) LimitFiles(n int) error {
	limit := unix.Rlimit{Cur: uint64(n), Max: uint64(n)}
	if err := unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		return fmt.Errorf("limit of open files of %s: %w", p.name, err)
	}
	return nil
}

// Kill ends the process at once, without a chance to tidy up, and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // an error means that it is gone
	<-p.done
}

// Pause stops the process as if it hung: its sockets stay open and say nothing. Resume ends that.
func (p *Process) Pause() error { return p.cmd.Process.Signal(unix.SIGSTOP) }

// Resume lets a paused process go on.
func (p *Process) Resume() error { return p.cmd.Process.Signal(unix.SIGCONT) }

// Stop asks the process to end, waits for grace, then kills it.
func (p *Process) Stop(grace time.Duration) {
	_ = p.cmd.Process.Signal(unix.SIGTERM)
	_ = p.cmd.Process.Signal(unix.SIGCONT) // a paused one has to hear the first
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.Kill()
	}
}

// Tail returns the end of the process's output.
func (p *Process) Tail() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(lastLines(data, 20))
}

// CPU is processor time: in the program itself, and in the kernel for it. The latter has what the kernel did of others' work while it
// was there, such as delivering packets.
type CPU struct{ User, System time.Duration }

// Add returns the sum of two times.
func (c CPU) Add(o CPU) CPU { return CPU{c.User + o.User, c.System + o.System} }

// Sub returns the time between two readings.
func (c CPU) Sub(o CPU) CPU { return CPU{c.User - o.User, c.System - o.System} }

// Total returns both times together.
func (c CPU) Total() time.Duration { return c.User + c.System }

// CPU returns the processor time the process has used, or used while it lived.
func (p *Process) CPU() CPU {
	select {
	case <-p.done:
		return CPU{p.cmd.ProcessState.UserTime(), p.cmd.ProcessState.SystemTime()}
	default:
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/stat")
	if err != nil {
		return CPU{}
	}
	return parseCPU(data)
}

// parseCPU reads /proc/PID/stat; what it cannot read is zero.
func parseCPU(stat []byte) CPU {
	// The second field is the program's name in parentheses, which may hold anything; utime and stime are 14th and 15th.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return CPU{}
	}
	utime, _ := strconv.ParseInt(fields[11], 10, 64)
	stime, _ := strconv.ParseInt(fields[12], 10, 64)
	return CPU{time.Duration(utime) * time.Second / userHZ, time.Duration(stime) * time.Second / userHZ}
}

// PeakRSS returns the largest resident memory of the process so far, in bytes; 0 when it has ended.
func (p *Process) PeakRSS() int64 { return p.status("VmHWM:") }

// RSS returns the resident memory of the process now, in bytes; 0 when it has ended.
func (p *Process) RSS() int64 { return p.status("VmRSS:") }

func (p *Process) status(key string) int64 {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// exited is the error of a process that ended when it should not have.
func (p *Process) exited() error {
	return fmt.Errorf("%s: %w (%w); the end of %s:\n%s", p.name, ErrExited, p.err, p.log, p.Tail())
}

// waitHealthy waits until url answers 200 while the process lives.
func (p *Process) waitHealthy(ctx context.Context, client *http.Client, url string) error {
	return p.waitFor(ctx, url, func() bool { return answers(ctx, client, url) })
}

// waitFor polls until ok, the end of the process or the end of ctx.
func (p *Process) waitFor(ctx context.Context, what string, ok func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-p.done:
			return p.exited()
		case <-ctx.Done():
			return fmt.Errorf("%s: wait for %s: %w; the end of %s:\n%s", p.name, what, context.Cause(ctx), p.log, p.Tail())
		case <-tick.C:
		}
	}
	return nil
}

// WaitSocket waits until somebody listens at the Unix socket while the process lives.
func (p *Process) WaitSocket(ctx context.Context, path string) error {
	return p.waitFor(ctx, path, func() bool {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil {
			_ = conn.Close() // only a question
		}
		return err == nil
	})
}

// answers reports whether url is answered with 200.
func answers(ctx context.Context, client *http.Client, url string) bool {
	return status(ctx, client, url) == http.StatusOK
}

// replies reports whether url is answered at all.
func replies(ctx context.Context, client *http.Client, url string) bool {
	return status(ctx, client, url) != 0
}

// status returns what url is answered with; 0 without an answer.
func status(ctx context.Context, client *http.Client, url string) int {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// runCommand runs a program on the host until it ends. The end of ctx interrupts it, then kills it.
func (h *Host) runCommand(ctx context.Context, argv []string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGINT) }
	cmd.WaitDelay = stopGrace
	err := h.ns.do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(argv[0]), err, lastLines(stderr.Bytes(), 5))
	}
	return stdout.String(), nil
}

func lastLines(data []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimRight(data, "\n"), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}
