package main

import "github.com/shoal-project/shoal/peer/piece"

// flow is bytes on their way: one piece from a host, or a run of pieces, one after the other, from the origin.
type flow struct {
	src, dst *host // src is the origin's own for a read of it
	piece    piece.Index
	request  *request // that it answers; nil for a read of the origin
	left     float64  // bytes of the piece
	share    float64  // bytes it is given in this pass
	ended    bool
	done     func(f *flow) // the piece has arrived; a flow goes on when it was given more bytes
}

// network moves the bytes of all flows in steps of equal length. In each step every sender, every receiver and the border between zones
// shares what it has fairly among its flows, a few times over, so that what one flow cannot use goes to the others.
type network struct {
	flows  []*flow
	moving []*flow
	// by host, the origin last; by direction over the border, from zone 0 first
	up, down     []float64
	nUp, nDown   []int32
	border       float64 // bytes a second each way; 0 is without limit
	borderLeft   [2]float64
	borderFlows  [2]int32
	originBytes  float64
	crossedBytes float64
}

// passes is how often a step shares out what is left.
const passes = 5

// tiny is less than a byte: nothing left.
const tiny = 1e-3

// step moves bytes for dt seconds and returns the flows whose piece arrived.
func (n *network) step(hosts []*host, origin *host, dt float64) (arrived []*flow) {
	for _, h := range hosts {
		n.up[h.id], n.down[h.id] = h.up*dt, h.down*dt
	}
	n.up[origin.id], n.down[origin.id] = origin.up*dt, 0
	n.borderLeft = [2]float64{n.border * dt, n.border * dt}
	n.moving = n.moving[:0]
	alive := n.flows[:0]
	for _, f := range n.flows {
		if f.ended {
			continue
		}
		alive = append(alive, f)
		if !f.src.hung && !f.dst.hung {
			n.moving = append(n.moving, f)
		}
	}
	clear(n.flows[len(alive):])
	n.flows = alive
	for range passes {
		if len(n.moving) == 0 {
			break
		}
		arrived = n.pass(arrived)
	}
	return arrived
}

// pass shares out what is left once.
func (n *network) pass(arrived []*flow) []*flow {
	for _, f := range n.moving {
		n.nUp[f.src.id], n.nDown[f.dst.id] = 0, 0
	}
	n.borderFlows = [2]int32{}
	for _, f := range n.moving {
		if n.up[f.src.id] > tiny && n.down[f.dst.id] > tiny {
			n.nUp[f.src.id]++
			n.nDown[f.dst.id]++
			if n.crosses(f) {
				n.borderFlows[f.src.zone&1]++
			}
		}
	}
	for _, f := range n.moving {
		f.share = 0
		if n.up[f.src.id] > tiny && n.down[f.dst.id] > tiny {
			f.share = min(f.left, n.up[f.src.id]/float64(n.nUp[f.src.id]), n.down[f.dst.id]/float64(n.nDown[f.dst.id]))
			if dir := f.src.zone & 1; n.border > 0 && n.crosses(f) {
				f.share = min(f.share, n.borderLeft[dir]/float64(n.borderFlows[dir]))
			}
		}
	}
	going := n.moving[:0]
	for _, f := range n.moving {
		f.left -= f.share
		n.up[f.src.id] -= f.share
		n.down[f.dst.id] -= f.share
		if n.crosses(f) {
			n.crossedBytes += f.share
			n.borderLeft[f.src.zone&1] -= f.share
		}
		if f.src.origin {
			n.originBytes += f.share
		}
		if f.left <= tiny {
			arrived = append(arrived, f)
			continue
		}
		going = append(going, f)
	}
	n.moving = going
	return arrived
}

func (n *network) crosses(f *flow) bool { return f.src.zone != f.dst.zone }
