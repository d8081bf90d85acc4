// Command shoal is the one binary of the project: image conversion in CI pipelines, the daemons of nodes and schedulers,
// and the small tools around them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
)

// Exit codes, the same for every command; they are part of the interface and listed in the help text.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitSource      = 3
	exitRegistry    = 4
	exitVerify      = 5
	exitInterrupted = 130
)

const exitHelp = `EXIT CODES:
   0    success
   1    anything not listed here
   2    wrong flag, argument or configuration
   3    a source is missing, unreadable or of another platform
   4    a registry refused or could not be reached
   5    bytes did not have the digest they should
   130  interrupted; a daemon that is told to stop ends with 0`

// version is set by the linker: -X main.version=$(git describe …).
var version string

func main() { os.Exit(main1()) }

func main1() int {
	ctx, stop := signal.NotifyContext(context.Background(), stopSignals()...)
	defer stop()
	return run(ctx, os.Args, os.Stdout, os.Stderr)
}

// stopSignals are what ends a command in order. A terminal that goes away is one, unless nohup said otherwise.
func stopSignals() []os.Signal {
	if signal.Ignored(syscall.SIGHUP) {
		return []os.Signal{os.Interrupt, syscall.SIGTERM}
	}
	return []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}
}

// run executes the command line and chooses the exit code, in this one place.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	err := app.RunContext(ctx, interspersed(app, args))
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "shoal: %v\n", err)
	if coded, ok := errors.AsType[*exitError](err); ok {
		return coded.code
	}
	if ctx.Err() != nil {
		return exitInterrupted
	}
	return exitFailure
}

// exitError gives an error the exit code it ends the process with.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usageError(err error) error { return &exitError{exitUsage, err} }

func newApp(stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name:                   "shoal",
		Usage:                  "bring models and their serving images to many nodes with one copy leaving the origin",
		Version:                buildVersion(),
		Writer:                 stdout,
		ErrWriter:              stderr,
		HideHelpCommand:        true,
		Flags:                  []cli.Flag{cli.HelpFlag}, // the library forgets it where there is a help command of our own
		UseShortOptionHandling: true,
		// A value may hold a comma; a flag that may be repeated is given once for each value.
		DisableSliceFlagSeparator: true,
		Suggest:                   true,
		CustomAppHelpTemplate:     cli.AppHelpTemplate + "\n" + exitHelp + "\n",
		ExitErrHandler:            func(*cli.Context, error) {}, // the exit code is chosen in run
		Action:                    unknownCommand,
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return usageError(err)
		},
		Commands: []*cli.Command{
			convertCommand(),
			checkCommand(),
			inspectCommand(),
			diffCommand(),
			copyCommand(),
			pushCommand(),
			pullCommand(),
			optimizeCommand(),
			getCommand(),
			preheatCommand(),
			statusCommand(),
			nodeCommand(),
			keeperCommand(),
			schedulerCommand(),
			limitsCommand(),
			mirrorCommand(),
			certsCommand(),
			completionCommand(),
			completeCommand(),
			helpCommand(),
			docsCommand(),
			versionCommand(),
		},
	}
}

// interspersed puts the flags of a command before its arguments, for those commands that people type as they do curl: the flag package
// takes flags only there. What stands behind -- stays as it is.
func interspersed(app *cli.App, args []string) []string {
	if len(args) < 3 || !slices.Contains([]string{"get", "preheat", "status"}, args[1]) {
		return args
	}
	flags, rest := slices.Clone(args[:2]), []string(nil)
	for i := 2; i < len(args); i++ {
		word := args[i]
		if word == "--" {
			rest = append(rest, args[i:]...)
			break
		}
		if len(word) < 2 || !strings.HasPrefix(word, "-") {
			rest = append(rest, word)
			continue
		}
		flags = append(flags, word)
		if f := flagOf(find(app.Commands, args[1]).Flags, word); f != nil && takesValue(f) && !strings.Contains(word, "=") && i+1 < len(args) {
			i++
			flags = append(flags, args[i])
		}
	}
	return append(flags, rest...)
}

// unknownCommand is the action of a command that only has subcommands.
func unknownCommand(c *cli.Context) error {
	switch {
	case c.NArg() == 0 && c.Command.HelpName != c.App.Name:
		return cli.ShowSubcommandHelp(c)
	case c.NArg() == 0:
		return cli.ShowAppHelp(c)
	}
	name := strings.TrimSpace(strings.TrimPrefix(c.Command.FullName(), c.App.Name) + " " + c.Args().First())
	return usageError(fmt.Errorf("unknown command %q; see %s --help for those there are", name, c.App.Name))
}

// command fills in what all commands share: a usage error that exits 2, a refusal of flags behind the first argument, which the
// flag package would silently take for arguments, and help that is laid out like a manual page. A command takes as many
// arguments as ArgsUsage has words. environment are lines of "NAME  what it does".
func command(c *cli.Command, environment ...string) *cli.Command {
	c.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return usageError(err) }
	c.CustomHelpTemplate = helpTemplate(c, environment)
	action, maxArgs := c.Action, len(strings.Fields(c.ArgsUsage))
	c.Action = func(ctx *cli.Context) error {
		args := ctx.Args().Slice()
		for i, a := range args {
			if i > 0 && len(a) > 1 && strings.HasPrefix(a, "-") {
				return usageError(fmt.Errorf("%s: flag %s stands behind the argument %q; flags go before arguments, see %s --help",
					ctx.Command.FullName(), a, args[0], ctx.Command.HelpName))
			}
		}
		if len(args) > maxArgs {
			return usageError(fmt.Errorf("%s: unexpected argument %q; see %s --help",
				ctx.Command.FullName(), args[maxArgs], ctx.Command.HelpName))
		}
		return action(ctx)
	}
	return c
}

func versionCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "version",
		Usage: "print the version and the toolchain it was built with",
		Action: func(ctx *cli.Context) error {
			info, ok := debug.ReadBuildInfo()
			goVersion := "unknown"
			if ok {
				goVersion = info.GoVersion
			}
			_, err := fmt.Fprintf(ctx.App.Writer, "shoal %s %s\n", buildVersion(), goVersion)
			return err
		},
	})
}

func buildVersion() string {
	if version != "" {
		return version
	}
	return "devel"
}
