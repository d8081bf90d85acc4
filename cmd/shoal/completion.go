package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

const completionHelp = `Prints a script that completes commands, options and their values. The script asks shoal itself, so that it stays right when
shoal is replaced by another version.

EXAMPLES:
   shoal completion bash > /etc/bash_completion.d/shoal
   source <(shoal completion bash)
   shoal completion zsh > "${fpath[1]}/_shoal"
   shoal completion fish > ~/.config/fish/completions/shoal.fish`

// completeName is the hidden command that the scripts ask.
const completeName = "__complete"

// Each script hands over the words up to the cursor. No answer means that the shell completes files.
const (
	bashScript = `# bash completion for shoal
_shoal() {
    local IFS=$'\n' cur="${COMP_WORDS[COMP_CWORD]}"
    # Readline takes a colon for the end of a word, and names of images are full of them.
    if [[ $(type -t _get_comp_words_by_ref) == function ]]; then
        local words cword
        _get_comp_words_by_ref -n : cur words cword
        COMPREPLY=($(shoal ` + completeName + ` "${words[@]:1:cword}" 2>/dev/null))
        __ltrimcolonlist=$(type -t __ltrim_colon_completions)
        [[ $__ltrimcolonlist == function ]] && __ltrim_colon_completions "$cur"
        unset __ltrimcolonlist
    else
        COMPREPLY=($(shoal ` + completeName + ` "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    fi
}
complete -o default -F _shoal shoal
`
	zshScript = `#compdef shoal
_shoal() {
    local -a answers
    answers=("${(@f)$(shoal ` + completeName + ` "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${answers[1]}" ]]; then
        compadd -- "${answers[@]}"
    else
        _files
    fi
}
if [[ "$funcstack[1]" == _shoal ]]; then
    _shoal "$@"
else
    compdef _shoal shoal
fi
`
	fishScript = `# fish completion for shoal
function __shoal_complete
    set -l words (commandline -opc) (commandline -ct)
    shoal ` + completeName + ` $words[2..-1] 2>/dev/null
end
complete -c shoal -a '(__shoal_complete)'
`
)

func completionCommand() *cli.Command {
	scripts := map[string]string{"bash": bashScript, "zsh": zshScript, "fish": fishScript}
	return command(&cli.Command{
		Name:        "completion",
		Usage:       "print a script that completes commands and options in a shell",
		ArgsUsage:   "SHELL",
		Description: completionHelp,
		Action: func(ctx *cli.Context) error {
			names, err := arguments(ctx, "the shell: bash, zsh or fish")
			if err != nil {
				return err
			}
			script, ok := scripts[names[0]]
			if !ok {
				return usageError(fmt.Errorf("completion: no script for %q; there are bash, zsh and fish", names[0]))
			}
			_, err = io.WriteString(ctx.App.Writer, script)
			return err
		},
	})
}

func completeCommand() *cli.Command {
	return &cli.Command{
		Name: completeName, Hidden: true, SkipFlagParsing: true, HideHelp: true,
		Action: func(ctx *cli.Context) error {
			for _, word := range completions(ctx.App, ctx.Args().Slice()) {
				if _, err := fmt.Fprintln(ctx.App.Writer, word); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// completions returns what the last of the words can become, by those before it. Nothing means that it is a file, or that nothing is
// known of it.
func completions(app *cli.App, words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	flags, commands, last := app.VisibleFlags(), app.VisibleCommands(), words[len(words)-1]
	var name string
	for i := 0; i < len(words)-1; i++ {
		word := words[i]
		if f := flagOf(flags, word); f != nil {
			if takesValue(f) && !strings.Contains(word, "=") {
				if i++; i == len(words)-1 {
					return matching(valuesOf(f.Names()[0]), last)
				}
			}
			continue
		}
		if c := find(commands, word); c != nil {
			flags, commands, name = c.VisibleFlags(), visible(c.Subcommands), c.Name
		}
	}
	if strings.HasPrefix(last, "-") {
		return matching(flagNames(flags), last)
	}
	var out []string
	for _, c := range commands {
		out = append(out, c.Name)
	}
	switch name {
	case "completion":
		out = []string{"bash", "zsh", "fish"}
	case "help":
		for _, c := range app.VisibleCommands() {
			out = append(out, c.Name)
		}
	}
	return matching(out, last)
}

func visible(commands []*cli.Command) []*cli.Command {
	var out []*cli.Command
	for _, c := range commands {
		if !c.Hidden {
			out = append(out, c)
		}
	}
	return out
}

// flagOf returns the flag that a word is, or nil.
func flagOf(flags []cli.Flag, word string) cli.Flag {
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	for _, f := range flags {
		for _, n := range f.Names() {
			if strings.HasPrefix(word, "-") && n == name {
				return f
			}
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

func flagNames(flags []cli.Flag) []string {
	var out []string
	for _, f := range flags {
		if n := f.Names()[0]; len(n) > 1 {
			out = append(out, "--"+n)
		}
	}
	return append(out, "--help")
}

// valuesOf returns what a flag can be, where that is a short list.
func valuesOf(flag string) []string {
	switch flag {
	case "output":
		return []string{"text", "json"}
	case "compressor":
		return []string{"zstd", "lz4_block", "none"}
	case "log-level":
		return []string{"debug", "info", "warn", "error"}
	case "role":
		return []string{"node", "scheduler"}
	case "platform":
		return []string{"linux/amd64", "linux/arm64"}
	}
	return nil
}

func matching(list []string, prefix string) []string {
	var out []string
	seen := map[string]bool{}
	for _, s := range list {
		if strings.HasPrefix(s, prefix) && !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}
