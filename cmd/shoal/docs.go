package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
)

// docsCommand writes what packagers want.
func docsCommand() *cli.Command {
	return &cli.Command{
		Name: "docs", Hidden: true, HideHelpCommand: true,
		Usage: "write documentation for packages",
		Subcommands: []*cli.Command{command(&cli.Command{
			Name:      "man",
			Usage:     "write a manual page for each command into a folder",
			ArgsUsage: "FOLDER",
			Action: func(ctx *cli.Context) error {
				names, err := arguments(ctx, "the folder to write to")
				if err != nil {
					return err
				}
				if err := os.MkdirAll(names[0], 0o755); err != nil {
					return err
				}
				for name, page := range manPages(newApp(nil, nil)) {
					if err := os.WriteFile(filepath.Join(names[0], name), []byte(page), 0o644); err != nil {
						return err
					}
				}
				return nil
			},
		})},
		Action: unknownCommand,
	}
}

// manPages returns a page for the program and one for each command, by file name.
func manPages(app *cli.App) map[string]string {
	app.Setup()
	out := map[string]string{}
	var index strings.Builder
	var add func(prefix string, commands []*cli.Command)
	add = func(prefix string, commands []*cli.Command) {
		for _, c := range visible(commands) {
			name := prefix + " " + c.Name
			if len(visible(c.Subcommands)) > 0 {
				add(name, c.Subcommands)
				continue
			}
			file := strings.ReplaceAll(name, " ", "-")
			out[file+".1"] = manPage(name, c)
			fmt.Fprintf(&index, ".TP\n.BR %s (1)\n%s\n", troff(file), troff(c.Usage))
		}
	}
	add(app.Name, app.Commands)
	var b strings.Builder
	manHead(&b, app.Name, app.Usage)
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n.I COMMAND\n[OPTIONS] [ARGUMENTS]\n.SH COMMANDS\n%s", app.Name, index.String())
	manExit(&b)
	out[app.Name+".1"] = b.String()
	return out
}

func manHead(b *strings.Builder, name, usage string) {
	file := strings.ReplaceAll(name, " ", "-")
	fmt.Fprintf(b, ".TH %s 1 \"\" \"shoal\" \"User Commands\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(troff(file)), troff(file), troff(usage))
}

func manExit(b *strings.Builder) {
	_, codes, _ := strings.Cut(exitHelp, "\n")
	fmt.Fprintf(b, ".SH EXIT STATUS\n.nf\n%s\n.fi\n", troff(codes))
}

func manPage(name string, c *cli.Command) string {
	var b strings.Builder
	manHead(&b, name, c.Usage)
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n[OPTIONS] %s\n", troff(name), troff(c.ArgsUsage))
	description, examples := cutExamples(c.Description)
	if description != "" {
		fmt.Fprintf(&b, ".SH DESCRIPTION\n.nf\n%s\n.fi\n", troff(description))
	}
	b.WriteString(".SH OPTIONS\n")
	for _, f := range c.VisibleFlags() {
		// What a flag says of itself is two columns, parted by a tab.
		left, right, _ := strings.Cut(f.String(), "\t")
		fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", troff(left), troff(right))
	}
	if examples != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s\n.fi\n", troff(examples))
	}
	manExit(&b)
	return b.String()
}

// troff escapes what would be a command of the formatter.
func troff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
