package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// A zone is a switch of its own whose only way to the first one is its border.
type zone struct {
	name   string
	bridge string
	inside string // the border's end on this switch; what it sends leaves the zone
	beyond string // its end on the first switch; what it sends enters the zone
}

// AddZone adds a zone behind a border of the given rate in both directions; zero does not limit. Nodes with this NodeConfig.Zone, and
// hosts added by AddHostIn, stand in it. Hosts of no such zone are at the first switch.
func (c *Cluster) AddZone(ctx context.Context, name string, border Rate) error {
	c.mu.Lock()
	n := len(c.zones) + 2
	z := zone{name, fmt.Sprintf("bridge%d", n), fmt.Sprintf("inside%d", n), fmt.Sprintf("beyond%d", n)}
	c.zones = append(c.zones, z)
	c.mu.Unlock()
	sw := string(c.switchNS())
	err := commands(ctx,
		"ip -n "+sw+" link add "+z.bridge+" type bridge stp_state 0 forward_delay 0",
		"ip -n "+sw+" link set "+z.bridge+" up",
		fmt.Sprintf("ip -n %s link add %s type veth peer name %s", sw, z.inside, z.beyond),
		fmt.Sprintf("ip -n %s link set %s master %s up", sw, z.inside, z.bridge),
		fmt.Sprintf("ip -n %s link set %s master %s up", sw, z.beyond, firstBridge),
	)
	if err == nil {
		err = errors.Join(shape(ctx, c.switchNS(), z.inside, border), shape(ctx, c.switchNS(), z.beyond, border))
	}
	if err != nil {
		return fmt.Errorf("zone %s: %w", name, err)
	}
	return nil
}

// Border returns how many bytes, headers included, have entered and left a zone over its border.
func (c *Cluster) Border(ctx context.Context, name string) (in, out int64, err error) {
	z, ok := c.zone(name)
	if !ok {
		return 0, 0, fmt.Errorf("there is no zone %s", name)
	}
	in, errIn := c.sent(ctx, z.beyond)
	out, errOut := c.sent(ctx, z.inside)
	return in, out, errors.Join(errIn, errOut)
}

// sent returns the bytes that an interface of the switch has sent.
func (c *Cluster) sent(ctx context.Context, dev string) (int64, error) {
	text, err := command(ctx, "ip", "-n", string(c.switchNS()), "-s", "-j", "link", "show", "dev", dev)
	if err != nil {
		return 0, err
	}
	return parseSent([]byte(text))
}

// parseSent reads what ip -s -j link show says of one interface.
func parseSent(text []byte) (int64, error) {
	var links []struct {
		Stats64 struct{ TX struct{ Bytes int64 } }
	}
	if err := json.Unmarshal(text, &links); err != nil {
		return 0, fmt.Errorf("statistics of a link: %w", err)
	}
	if len(links) != 1 {
		return 0, fmt.Errorf("statistics of a link: there are %d", len(links))
	}
	return links[0].Stats64.TX.Bytes, nil
}

func (c *Cluster) zone(name string) (zone, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, z := range c.zones {
		if z.name == name {
			return z, true
		}
	}
	return zone{}, false
}
