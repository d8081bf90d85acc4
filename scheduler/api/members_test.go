package api

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// zone is a resolver that knows one name.
type zone struct {
	mu    sync.Mutex
	addrs []string
	err   error
}

func (z *zone) set(err error, addrs ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.addrs, z.err = addrs, err
}

func (z *zone) LookupHost(_ context.Context, host string) ([]string, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if host != "schedulers.example" {
		return nil, errors.New("no such name: " + host)
	}
	return slices.Clone(z.addrs), z.err
}

// TestMembersFollowTheirName has the addresses of a name change, fail, and come back.
func TestMembersFollowTheirName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{}
		z.set(errors.New("server failure"))
		m := NewMembers([]string{"http://10.0.0.9:7700/", "dns+http://schedulers.example:7700"},
			func(u string) *Client { return NewClient(u, "") }, z, nil)
		var said []string
		clients := map[string]*Client{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- m.Watch(ctx, func(list []*Client) {
				var urls []string
				for _, c := range list {
					if old := clients[c.URL()]; old != nil && old != c {
						t.Errorf("%s has another client now", c.URL())
					}
					clients[c.URL()] = c
					urls = append(urls, c.URL())
				}
				said = append(said, strings.Join(urls, " "))
			})
		}()
		synctest.Wait()
		for _, step := range []struct {
			err   error
			addrs []string
		}{
			{nil, []string{"10.0.0.2", "10.0.0.1"}},
			{nil, []string{"10.0.0.1", "10.0.0.2"}}, // in another order
			{errors.New("server failure"), nil},
			{nil, nil},
			{nil, []string{"10.0.0.1", "fd00::3", "10.0.0.9"}},
			{nil, []string{"fd00::3"}},
		} {
			z.set(step.err, step.addrs...)
			time.Sleep(lookEvery + time.Millisecond)
			synctest.Wait()
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := []string{
			"http://10.0.0.9:7700",
			"http://10.0.0.1:7700 http://10.0.0.2:7700 http://10.0.0.9:7700",
			"http://10.0.0.1:7700 http://10.0.0.9:7700",
			"http://10.0.0.9:7700 http://[fd00::3]:7700",
		}
		if !slices.Equal(said, want) {
			t.Errorf("said\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
		}
	})
}
