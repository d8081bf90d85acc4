package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// helpTemplate is the help of a command in the order of a manual page. What stands in Description behind EXAMPLE or EXAMPLES
// comes behind the options.
func helpTemplate(c *cli.Command, environment []string) string {
	description, examples := cutExamples(c.Description)
	var b strings.Builder
	b.WriteString("NAME:\n   {{.HelpName}} - {{.Usage}}\n\nSYNOPSIS:\n   {{.HelpName}}{{if .VisibleFlags}} [OPTIONS]{{end}}{{if .ArgsUsage}} {{.ArgsUsage}}{{end}}\n")
	section := func(name, text string) {
		if text != "" {
			fmt.Fprintf(&b, "\n%s:\n%s\n", name, strings.ReplaceAll(text, "{{", `{{"{{"}}`))
		}
	}
	section("DESCRIPTION", indent(description))
	b.WriteString("{{if .VisibleFlags}}\nOPTIONS:{{template \"visibleFlagTemplate\" .}}\n{{end}}")
	section("EXAMPLES", examples)
	b.WriteString("\n" + exitHelp + "\n")
	section("ENVIRONMENT", indent(strings.Join(environment, "\n")))
	return b.String()
}

// cutExamples takes the examples off a description.
func cutExamples(s string) (description, examples string) {
	for _, mark := range []string{"\nEXAMPLES:\n", "\nEXAMPLE:\n"} {
		if before, after, ok := strings.Cut(s, mark); ok {
			return strings.TrimSpace(before), after
		}
	}
	return s, ""
}

func indent(s string) string {
	if s == "" {
		return ""
	}
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if l != "" {
			lines[i] = "   " + l
		}
	}
	return strings.Join(lines, "\n")
}

// accessEnvironment is what every command reads that speaks to registries.
func accessEnvironment() []string {
	return []string{
		"DOCKER_CONFIG       folder of config.json with the credentials; default ~/.docker",
		"REGISTRY_AUTH_FILE  the credentials of podman and skopeo, if they are elsewhere",
		"HTTPS_PROXY, HTTP_PROXY, NO_PROXY",
		"                    proxies for registries, as curl reads them",
		"TERM                dumb: progress in lines, as if there were no terminal",
	}
}

// convertEnvironment is what convert reads besides.
func convertEnvironment() []string {
	return append(accessEnvironment(),
		"HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME",
		"                    the model hub, and the token for it",
		"AWS_*               region, credentials and endpoint of object stores, as all AWS tools read them",
		"TMPDIR              where Nydus blobs, and many small files of a stream, wait until they are uploaded; default /tmp",
	)
}

func helpCommand() *cli.Command {
	return command(&cli.Command{
		Name:      "help",
		Usage:     "explain a command",
		ArgsUsage: "[COMMAND] [SUBCOMMAND]",
		Action: func(ctx *cli.Context) error {
			c, commands := (*cli.Command)(nil), ctx.App.Commands
			for _, name := range ctx.Args().Slice() {
				if c = find(commands, name); c == nil {
					return usageError(fmt.Errorf("help: unknown command %q; see %s --help for those there are", name, ctx.App.Name))
				}
				commands = c.Subcommands
			}
			if c == nil {
				return cli.ShowAppHelp(ctx)
			}
			return ctx.App.RunContext(ctx.Context, append(append([]string{ctx.App.Name}, ctx.Args().Slice()...), "--help"))
		},
	})
}

// find returns the command of a name, or nil.
func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
