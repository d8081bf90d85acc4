package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/scheduler/identity"
)

const certsInitHelp = `Makes the authority of a cluster: ca.pem, which every host gets, and ca-key.pem, which stays where certificates are issued. Whoever
has the key can join the cluster.

EXAMPLE:
   shoal certs init --dir ./certs`

const certsIssueHelp = `Makes the certificate of a host, NAME.pem and NAME-key.pem, signed by the authority in the folder. Hosts and schedulers take the new
files of a certificate within seconds, without a restart.

EXAMPLES:
   shoal certs issue --dir ./certs node-1
   shoal certs issue --dir ./certs --role scheduler scheduler-1
   shoal certs issue --dir ./certs --days 30 --force node-1`

func certsDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "dir", Value: ".", Usage: "the authority is in `DIR`"}
}

func certsCommand() *cli.Command {
	return &cli.Command{
		Name: "certs", Usage: "make the certificates by which hosts of a cluster know each other", HideHelpCommand: true,
		Action: unknownCommand,
		Subcommands: []*cli.Command{
			command(&cli.Command{
				Name: "init", Usage: "make the authority of a cluster", Description: certsInitHelp,
				Flags: []cli.Flag{certsDirFlag(), &cli.StringFlag{Name: "name", Value: "shoal", Usage: "the authority is called `NAME`"}},
				Action: func(ctx *cli.Context) error {
					_, cert, key, err := identity.NewAuthority(ctx.String("name"))
					if err != nil {
						return err
					}
					if err := os.MkdirAll(ctx.String("dir"), 0o700); err != nil {
						return err
					}
					return writeCert(ctx, "ca", cert, key, false)
				},
			}),
			command(&cli.Command{
				Name: "issue", Usage: "make the certificate of a host", ArgsUsage: "NAME", Description: certsIssueHelp,
				Flags: []cli.Flag{certsDirFlag(),
					&cli.StringFlag{Name: "role", Value: "node", Usage: "the host is a `ROLE`: node or scheduler"},
					&cli.IntFlag{Name: "days", Value: 365, Usage: "it lasts `N` days"},
					&cli.BoolFlag{Name: "force", Usage: "replace the files of an older one"}},
				Action: certsIssue,
			}),
		},
	}
}

func certsIssue(ctx *cli.Context) error {
	names, err := arguments(ctx, "the host's name")
	if err != nil {
		return err
	}
	name := names[0]
	if strings.ContainsAny(name, "/\\\x00") || strings.HasPrefix(name, ".") || name == "ca" {
		return usageError(fmt.Errorf("certs issue: %q cannot be the name of files; use the host's name", name))
	}
	role, ok := map[string]identity.Role{"node": identity.Node, "scheduler": identity.Scheduler}[ctx.String("role")]
	if !ok {
		return usageError(fmt.Errorf("--role %q: want node or scheduler", ctx.String("role")))
	}
	if ctx.Int("days") < 1 {
		return usageError(fmt.Errorf("--days %d: want 1 or more", ctx.Int("days")))
	}
	dir := ctx.String("dir")
	cert, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err == nil {
		var key []byte
		if key, err = os.ReadFile(filepath.Join(dir, "ca-key.pem")); err == nil {
			var a *identity.Authority
			if a, err = identity.ParseAuthority(cert, key); err != nil {
				return fmt.Errorf("certs issue: authority in %s: %w", dir, err)
			}
			issued, issuedKey, err := a.Issue(name, role, time.Duration(ctx.Int("days"))*24*time.Hour)
			if err != nil {
				return fmt.Errorf("certs issue: %w", err)
			}
			return writeCert(ctx, name, issued, issuedKey, ctx.Bool("force"))
		}
	}
	return fmt.Errorf("certs issue: %w; make an authority with shoal certs init --dir %s", err, dir)
}

// writeCert writes NAME.pem and NAME-key.pem, the key first: who reads both again finds them together, or not yet changed.
func writeCert(ctx *cli.Context, name string, cert, key []byte, replace bool) error {
	for _, f := range []struct {
		suffix string
		data   []byte
		mode   os.FileMode
	}{{"-key.pem", key, 0o600}, {".pem", cert, 0o644}} {
		path := filepath.Join(ctx.String("dir"), name+f.suffix)
		if _, err := os.Lstat(path); err == nil && !replace {
			return fmt.Errorf("%s is there already; it is not replaced", path)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := renameio.WriteFile(path, f.data, f.mode, renameio.IgnoreUmask()); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(ctx.App.Writer, path); err != nil {
			return err
		}
	}
	return nil
}
