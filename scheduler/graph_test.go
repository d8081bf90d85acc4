package scheduler

import (
	"fmt"
	"testing"
	"time"
)

// degrees counts every member's neighbours, as the machine has them.
func (c *cluster) degrees() (least, most int) {
	least = 1 << 20
	for _, me := range c.task().order {
		least, most = min(least, len(me.neighbours)), max(most, len(me.neighbours))
		for id := range me.neighbours {
			if other := c.task().members[id]; !other.neighbours[me.host.ID] {
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
	before := len(c.task().members["full"].neighbours)
	c.after(time.Second, Tick{})
	if after := len(c.task().members["full"].neighbours); before == 0 || after != before {
		t.Errorf("the holder has %d neighbours, had %d", after, before)
	}
}

func TestMembersThatMovedHereTogetherAreLinkedOnce(t *testing.T) {
	c := newCluster(t)
	told := map[HostID]int{}
	step := func(ev Event) {
		for _, cmd := range c.Step(c.now, ev) {
			if _, ok := cmd.Body.(Neighbours); ok {
				told[cmd.To]++
			}
		}
	}
	come := func(from, to int) {
		for i := from; i < to; i++ {
			id := fmt.Sprint("n", i)
			step(hostJoins(id, false, ""))
			step(moved(join(id, blob(4))))
		}
	}
	come(0, 40)
	if len(told) != 0 {
		t.Errorf("told of neighbours before the others could come: %v", told)
	}
	step(Tick{})
	for id, times := range told {
		if times != 1 {
			t.Errorf("%s was told of its neighbours %d times", id, times)
		}
	}
	if len(told) != 40 {
		t.Errorf("%d of 40 were told of their neighbours", len(told))
	}
	clear(told)
	come(40, 41) // too few for a new graph
	c.now = c.now.Add(time.Second)
	step(Tick{})
	if told["n40"] != 1 || len(told) != 1 {
		t.Errorf("told of neighbours: %v, want n40 once", told)
	}
}

func TestSeedsThatComeAndGoTogetherAreToldOnce(t *testing.T) {
	c := newCluster(t)
	told := map[HostID][]int{}
	step := func(ev Event) {
		for _, cmd := range c.Step(c.now, ev) {
			if b, ok := cmd.Body.(Seeds); ok {
				told[cmd.To] = append(told[cmd.To], len(b.Hosts))
			}
		}
	}
	step(hostJoins("n1", false, ""))
	for i := range 5 {
		step(hostJoins(fmt.Sprint("s", i), true, ""))
	}
	step(HostLeft{Host: "s4"})
	for range 3 {
		step(Tick{})
	}
	if fmt.Sprint(told["n1"]) != "[0 4]" || fmt.Sprint(told["s3"]) != "[4 4]" {
		t.Errorf("told how many seeds there are: %v, want each once when it came, and once of all changes", told)
	}
}
