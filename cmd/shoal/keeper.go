package main

import (
	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/snapshotter/keeper"
)

// keeperCommand is started by the node, and hidden: nobody else has a use for it.
func keeperCommand() *cli.Command {
	return command(&cli.Command{
		Name: "keeper", Usage: "hold what readers of mounted images wait for while the node's daemon is away", Hidden: true,
		Action: func(ctx *cli.Context) error {
			l, err := keeper.Inherited()
			if err != nil {
				return err
			}
			return keeper.Serve(ctx.Context, l)
		},
	})
}
