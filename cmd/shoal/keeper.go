package main

import (
	"net"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/snapshotter/keeper"
)

func keeperCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "keeper",
		Usage: "hold what lets readers of lazily mounted images wait while the node's daemon is away",
		Description: `A node starts its keeper itself. Run it as a service of its own where the node's death takes all that it has started along, as in a
container: the node takes the keeper it finds at the socket. It holds descriptors, knows nothing of images and needs no rights.

The kernel asks the node before it reads what has not come yet of a mounted image. While the node restarts or is upgraded, readers
wait; that lasts as long as somebody holds the descriptor the kernel asks through. A keeper starts a second one beside itself: when one
is killed, the other goes on and starts another. Only when node and both keepers have gone at once, reads of what has not come return
zeros until the node is back, which then says so and mounts anew: containers of that time have to be restarted. So do not stop the
keepers while the node is down.

EXAMPLES:
   shoal keeper --socket /var/lib/shoal/lazy/keeper.sock`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "socket", Usage: "listen at `PATH`; without it at descriptor 3, as the node starts it"},
			&cli.BoolFlag{Name: "follow", Usage: "be the second one", Hidden: true},
		},
		Action: func(c *cli.Context) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			mate := []string{self, "keeper", "--follow"}
			listen := keeper.Inherited
			switch socket := c.String("socket"); {
			case c.Bool("follow"):
				return keeper.Follow(c.Context, mate)
			case socket != "":
				listen = func() (*net.UnixListener, error) { return keeper.Listen(c.Context, socket) }
			}
			l, err := listen()
			if err != nil {
				return err
			}
			return keeper.Serve(c.Context, l, mate)
		},
	})
}
