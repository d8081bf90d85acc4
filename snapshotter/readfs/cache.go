package readfs

import (
	"container/list"
	"sync"
)

// cache keeps the chunks used last, up to a number of bytes. What it returns is shared and only read.
type cache struct {
	limit int64

	mu    sync.Mutex // guards what follows
	size  int64
	order *list.List // of *entry, the one used last in front
	byNum map[uint32]*list.Element
}

type entry struct {
	chunk uint32
	data  []byte
}

func newCache(limit int64) *cache {
	return &cache{limit: limit, order: list.New(), byNum: map[uint32]*list.Element{}}
}

// get returns the chunk, and nil if it is not kept.
func (c *cache) get(chunk uint32) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byNum[chunk]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry).data
}

// put keeps data, which must not change any more.
func (c *cache) put(chunk uint32, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if int64(len(data)) > c.limit || c.byNum[chunk] != nil {
		return
	}
	c.byNum[chunk] = c.order.PushFront(&entry{chunk, data})
	c.size += int64(len(data))
	for c.size > c.limit {
		last := c.order.Remove(c.order.Back()).(*entry)
		delete(c.byNum, last.chunk)
		c.size -= int64(len(last.data))
	}
}
