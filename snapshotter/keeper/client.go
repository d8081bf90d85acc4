package keeper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Config says where the keeper is.
type Config struct {
	// Socket is the path it listens at. A long one is reached through its folder.
	Socket string
	// Command starts a keeper, which finds the listening socket as descriptor 3. Without one Connect starts none.
	Command []string
	// Cgroup is the control group below the root (version 2) that a keeper is moved to when it is started, so that it does not end with the
	// service that started it. Empty leaves it.
	Cgroup string
	// Stderr takes what a keeper that was started says; nil discards.
	Stderr *os.File
	// Log is told when a started keeper may not outlive this process after all; nil discards.
	Log *slog.Logger
}

// patience is how long a keeper may take to answer. It only passes descriptors on.
const patience = 10 * time.Second

// ErrNone means that no keeper listens, and that Connect was not to start one.
var ErrNone = errors.New("there is no keeper")

// A Client is a connection to a keeper. It is safe for concurrent use.
type Client struct {
	conn *net.UnixConn
	gone chan struct{}

	mu      sync.Mutex // held during a request
	replies chan reply
	closing sync.Once
}

type reply struct {
	text string
	fds  []int
}

// errGone means that the keeper has gone, or this connection to it.
var errGone = errors.New("keeper has gone")

const (
	// goneTries is how often a keeper is asked that goes while it is asked, and gonePause what is waited in between.
	goneTries = 10
	gonePause = 100 * time.Millisecond
)

// Connect returns a connection to the keeper at cfg.Socket. If nobody listens there, it starts one in a session of its own. One that does not
// answer within some seconds is ErrHung. ctx bounds Connect only.
func Connect(ctx context.Context, cfg Config) (*Client, error) {
	for try := 1; ; try++ {
		c, err := connectOnce(ctx, cfg)
		if !errors.Is(err, errGone) || try == goneTries {
			return c, err
		}
		select { // it was dying: its mate takes its place, or the next try starts another pair
		case <-time.After(gonePause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func connectOnce(ctx context.Context, cfg Config) (*Client, error) {
	bound, cancel := context.WithTimeout(ctx, firstWord) // a full queue makes callers wait
	defer cancel()
	conn, err := dial(bound, cfg.Socket)
	switch {
	case nobody(err) && len(cfg.Command) > 0:
		return start(ctx, cfg)
	case nobody(err):
		err = fmt.Errorf("%w: %w", ErrNone, err)
	case err == nil:
		c := newClient(conn)
		if err = c.greet(firstWord); err == nil {
			return c, nil
		}
		_ = c.Close() // nothing was asked of it
	case errors.Is(err, unix.EAGAIN) || bound.Err() != nil && ctx.Err() == nil:
		err = fmt.Errorf("%w: %w", ErrHung, err)
	}
	return nil, fmt.Errorf("keeper at %s: %w", cfg.Socket, err)
}

// Running reports whether a keeper listens at a socket, be it one that hangs. It asks nothing.
func Running(ctx context.Context, socket string) bool {
	ctx, cancel := context.WithTimeout(ctx, firstWord)
	defer cancel()
	conn, err := dial(ctx, socket)
	if err == nil {
		_ = conn.Close() // only a question
	}
	return !nobody(err)
}

// nobody reports whether a connection failed since nobody listens.
func nobody(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// start starts a keeper and returns a connection to it.
func start(ctx context.Context, cfg Config) (*Client, error) {
	if len(cfg.Command) == 0 {
		return nil, ErrNone
	}
	if err := launch(ctx, cfg); err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	conn, err := dial(ctx, cfg.Socket)
	if err != nil {
		return nil, fmt.Errorf("keeper at %s: %w", cfg.Socket, err)
	}
	return newClient(conn), nil
}

// greet waits for a keeper's first word.
func (c *Client) greet(within time.Duration) error {
	_, _, err := c.askWithin(within, 'I', "processes", nil)
	return err
}

func newClient(conn *net.UnixConn) *Client {
	c := &Client{conn: conn, gone: make(chan struct{}), replies: make(chan reply, 1)}
	go c.listen() // ends with the connection, at Close at the latest
	return c
}

func dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	name, done, err := address(socket)
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := new(net.Dialer).DialContext(ctx, "unixpacket", name)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// maxAddress is what fits in a socket's address.
const maxAddress = 100

// address returns a name for the socket that is short enough, valid until done is called.
func address(socket string) (name string, done func(), err error) {
	if len(socket) <= maxAddress {
		return socket, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket)), func() { _ = dir.Close() }, nil // only named
}

// Listen returns the socket of a keeper, in place of one that nobody listens at any more.
func Listen(ctx context.Context, socket string) (*net.UnixListener, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	name, done, err := address(socket)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := new(net.ListenConfig).Listen(ctx, "unixpacket", name)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // the next one may have taken the name
	return u, os.Chmod(socket, 0o600)
}

// launch starts a keeper that outlives this process.
func launch(ctx context.Context, cfg Config) error {
	l, err := Listen(ctx, cfg.Socket)
	if err != nil {
		return err
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		return err
	}
	defer file.Close()
	cmd := exec.Command(cfg.Command[0], cfg.Command[1:]...) //nolint:noctx // it has to outlive every context
	cmd.ExtraFiles = []*os.File{file}
	if cfg.Stderr != nil {
		cmd.Stderr = cfg.Stderr
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := outlive(cmd.Process.Pid, cfg.Cgroup); err != nil && cfg.Log != nil {
		cfg.Log.Warn("keeper may end together with this process", "error", err)
	}
	go func() { _ = cmd.Wait() }() // so that no zombie stays; ends with the keeper, or with this process
	return nil
}

// listen passes answers on and notices the keeper's end.
func (c *Client) listen() {
	defer close(c.gone)
	for {
		text, fds, err := receive(c.conn)
		if err != nil {
			return
		}
		c.replies <- reply{text, fds}
	}
}

// Check asks for a sign of life. A keeper that gives none within some seconds is ErrHung, and this connection to it is given up: Gone.
func (c *Client) Check() error { return c.greet(firstWord) }

// Gone returns a channel that is closed when the keeper has gone, or this connection to it.
func (c *Client) Gone() <-chan struct{} { return c.gone }

// Close ends the connection. What is kept stays.
func (c *Client) Close() error {
	var err error
	c.closing.Do(func() {
		err = c.conn.Close()
		<-c.gone
	})
	return err
}

// Put has the keeper hold the files under the name, in place of those it had.
func (c *Client) Put(name string, files []*os.File) error {
	fds := make([]int, len(files))
	return withDescriptors(files, fds, func() error {
		_, _, err := c.ask('P', name, fds)
		return err
	})
}

// withDescriptors calls f with the descriptors of the files in fds, none of which changes by this.
func withDescriptors(files []*os.File, fds []int, f func() error) error {
	if len(files) == 0 {
		return f()
	}
	conn, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	ctl := conn.Control(func(fd uintptr) {
		fds[0] = int(fd)
		err = withDescriptors(files[1:], fds[1:], f)
	})
	return errors.Join(err, ctl)
}

// Get returns the files under the name, none if there are none. They are the caller's.
func (c *Client) Get(name string) ([]*os.File, error) {
	_, fds, err := c.ask('G', name, nil)
	if err != nil {
		return nil, err
	}
	files := make([]*os.File, 0, len(fds))
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	return files, nil
}

// Drop has the keeper close what it holds under the name.
func (c *Client) Drop(name string) error {
	_, _, err := c.ask('D', name, nil)
	return err
}

// Processes returns the numbers of the process that answers and of its mate, which is 0 while it has none that has all files.
func (c *Client) Processes() (leader, mate int, err error) {
	text, _, err := c.ask('I', "processes", nil)
	if err == nil {
		_, err = fmt.Sscan(text, &leader, &mate)
	}
	return leader, mate, err
}

// ask sends a request and waits for its answer.
func (c *Client) ask(op byte, name string, fds []int) (text string, got []int, err error) {
	return c.askWithin(patience, op, name, fds)
}

func (c *Client) askWithin(within time.Duration, op byte, name string, fds []int) (text string, got []int, err error) {
	if name == "" || len(name) > maxName || len(fds) > maxFiles {
		return "", nil, fmt.Errorf("keeper: name %q with %d files is not possible", name, len(fds))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := send(c.conn, string(op)+name, fds); err != nil {
		return "", nil, fmt.Errorf("keeper: %w", err)
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case r := <-c.replies:
		if r.text[0] == 'K' || r.text[0] == 'N' {
			return r.text[1:], r.fds, nil
		}
		closeAll(r.fds)
		return "", nil, fmt.Errorf("keeper: %s", r.text[1:])
	case <-c.gone:
		return "", nil, errGone
	case <-timer.C:
		_ = c.conn.Close() // a late answer would be taken for that of the next question
		return "", nil, fmt.Errorf("%w: no answer within %v", ErrHung, within)
	}
}

var errNoSocket = errors.New("keeper: no socket was inherited; name one to listen at")

// Inherited returns the listening socket of a keeper that Connect has started.
func Inherited() (*net.UnixListener, error) {
	file := os.NewFile(3, "keeper")
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil, errNoSocket
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(errors.New("keeper: the inherited socket is of another kind"), l.Close())
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}
