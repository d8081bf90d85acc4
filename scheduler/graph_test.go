package scheduler

import (
	"fmt"
	"testing"
	"time"
)

// degrees counts every member's neighbours, as the machine has them.
func (c *cluster) degrees() (least, most int) {
	least = 1 << 20
	for _, me := range c.tasks[taskKey{id: "blob"}].order {
		least, most = min(least, len(me.neighbours)), max(most, len(me.neighbours))
		for id := range me.neighbours {
			if other := c.tasks[taskKey{id: "blob"}].members[id]; !other.neighbours[me.host.ID] {
				c.t.Errorf("%s has neighbour %s, which does not have it", me.host.ID, id)
			}
		}
	}
	return least, most
}

func TestMembersThatCameOneAfterTheOtherAreLinkedEvenly(t *testing.T) {
	c := newCluster(t)
	come := func(from, to int) {
		for i := from; i < to; i++ {
			id := fmt.Sprint("n", i)
			c.do(hostJoins(id, false, ""), join(id, blob(4)))
		}
	}
	come(0, 200)
	if _, most := c.degrees(); most <= 20 {
		t.Fatalf("at most %d neighbours: the test does not show what it should", most)
	}
	c.after(time.Second, Tick{})
	if least, most := c.degrees(); least < 13 || most > 16 {
		t.Errorf("%d to %d neighbours, want about 16", least, most)
	}
	if got := len(c.neighbours["n0"]); got < 13 || got > 16 {
		t.Errorf("n0 was told of %d neighbours", got)
	}
	was := fmt.Sprint(c.neighbours)
	if c.after(time.Minute, Tick{}); fmt.Sprint(c.neighbours) != was {
		t.Error("linked anew although nobody has come")
	}
	if come(200, 201); len(c.neighbours["n200"]) != 16 {
		t.Errorf("a latecomer has %d neighbours at once, want 16", len(c.neighbours["n200"]))
	}
	was = fmt.Sprint(c.neighbours)
	if c.after(time.Minute, Tick{}); fmt.Sprint(c.neighbours) != was {
		t.Error("linked anew for one latecomer")
	}
}

func TestLinksToWhoHoldsEverythingOutliveTheNewGraph(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("full", false, ""), TaskJoined{Host: "full", Task: blob(4), Have: []Run{{0, 4}}})
	for i := range 40 {
		id := fmt.Sprint("n", i)
		c.do(hostJoins(id, false, ""), join(id, blob(4)))
	}
	before := len(c.tasks[taskKey{id: "blob"}].members["full"].neighbours)
	c.after(time.Second, Tick{})
	if after := len(c.tasks[taskKey{id: "blob"}].members["full"].neighbours); before == 0 || after != before {
		t.Errorf("the holder has %d neighbours, had %d", after, before)
	}
}
