package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/registry-mirror/hosts"
)

const mirrorHelp = `containerd asks the node's mirror first for every image, and the registry itself when the mirror does not answer.
This writes a marked block into hosts.toml files and leaves the rest of them alone; it takes effect with the next pull,
and containerd is never restarted. A file that was there before is copied once to hosts.toml.before-shoal.

--for names other programs:
   podman   podman, CRI-O, buildah and skopeo: a file of our own in registries.conf.d, for the registries named by --registry
   docker   dockerd: registry-mirrors in daemon.json, which are for docker.io alone. dockerd does not say so, so the node needs
            mirror.default_registry: docker.io. It takes effect with systemctl reload docker`

// The values of --for.
const (
	forContainerd = "containerd"
	forPodman     = "podman"
	forDocker     = "docker"
)

// dockerReload is said after a change of dockerd's configuration.
const dockerReload = "note: dockerd reads it after: systemctl reload docker."

var (
	errFor            = errors.New("--for is containerd, podman or docker")
	errDockerRegistry = errors.New("--registry: dockerd uses mirrors for docker.io alone; leave it out")
	errSnapshotter    = errors.New("--snapshotter: only containerd takes a snapshotter; leave it out, or --for")
	errRootAlone      = errors.New("--snapshotter-root: it is printed with --snapshotter; give that too, or leave it out")
	errPodmanRemove   = errors.New("--registry: for podman all are removed at once; to keep some, run configure with these")
)

func mirrorCommand() *cli.Command {
	return &cli.Command{
		Name:        "mirror",
		Usage:       "put the node's mirror into the registry configuration of containerd, podman or docker, or take it out",
		Description: mirrorHelp,
		Subcommands: []*cli.Command{mirrorConfigureCommand(), mirrorRemoveCommand()},
		Action: func(ctx *cli.Context) error {
			if name := ctx.Args().First(); name != "" {
				return usageError(fmt.Errorf("mirror: unknown command %q; it is configure or remove", name))
			}
			return cli.ShowSubcommandHelp(ctx)
		},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error { return usageError(err) },
	}
}

func mirrorFlags(own ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "for", Value: forContainerd, Usage: "the `PROGRAM` that pulls: containerd, podman (also CRI-O, buildah, skopeo) or docker"},
		&cli.StringFlag{Name: "registries-dir", Value: hosts.DefaultRegistriesDir, Usage: "podman's registries.conf.d, `DIR`"},
		&cli.StringFlag{Name: "docker-config", Value: hosts.DefaultDockerConfig, Usage: "dockerd's configuration `FILE`"},
		&cli.StringFlag{Name: "mirror", Value: hosts.DefaultMirror, Usage: "`URL` the mirror listens at"},
		&cli.StringFlag{Name: "certs-dir", Value: hosts.DefaultCertsDir, Usage: "containerd's config_path, `DIR`"},
		&cli.BoolFlag{Name: "dry-run", Usage: "show what would change, and change nothing"},
	}, own...)
}

func mirrorConfigureCommand() *cli.Command {
	return command(&cli.Command{
		Name:        "configure",
		Usage:       "make the mirror the first host that is asked",
		Description: mirrorHelp,
		Flags: mirrorFlags(
			&cli.StringSliceFlag{Name: "registry", Usage: "`HOST` or HOST:PORT to mirror, can be repeated; without it all that have no folder of their own"},
			&cli.StringSliceFlag{Name: "plain-http", Usage: "like --registry, for a `HOST` that speaks HTTP without TLS"},
			&cli.StringFlag{Name: "containerd-config", Value: hosts.DefaultContainerdConfig, Usage: "containerd's configuration `FILE`, to tell whether it reads the folder"},
			&cli.StringFlag{Name: "snapshotter", Usage: "also print what containerd's configuration needs to use the node's snapshotter, whose socket is at `PATH`"},
			&cli.IntFlag{Name: "config-version", Usage: "`VERSION` of containerd's configuration to print for where there is none yet, 2 or 3; by default that of the installed containerd"},
			&cli.StringFlag{Name: "snapshotter-root", Usage: "`FOLDER` of the node's snapshots, if it is not snapshots beside the socket"},
		),
		Action: func(ctx *cli.Context) error {
			cfg := hosts.Config{CertsDir: ctx.String("certs-dir"), Mirror: ctx.String("mirror"), Registries: mirrorRegistries(ctx)}
			if err := cfg.Validate(); err != nil {
				return usageError(err)
			}
			if err := checkSnapshotter(ctx); err != nil {
				return usageError(err)
			}
			switch ctx.String("for") {
			case forPodman:
				change, err := hosts.PlanContainers(cfg, ctx.String("registries-dir"))
				if errors.Is(err, hosts.ErrNeedsRegistries) {
					return usageError(err)
				}
				return applyHosts(ctx, []hosts.Change{change}, err)
			case forDocker:
				if len(cfg.Registries) > 0 {
					return usageError(errDockerRegistry)
				}
				change, err := hosts.PlanDocker(cfg, ctx.String("docker-config"))
				if err := applyHosts(ctx, []hosts.Change{change}, err); err != nil || !change.Changed() {
					return err
				}
				fmt.Fprintln(ctx.App.ErrWriter, dockerReload+" The node needs mirror: {default_registry: docker.io}")
				return nil
			case forContainerd:
			default:
				return usageError(errFor)
			}
			return configureContainerd(ctx, cfg)
		},
	})
}

// checkSnapshotter refuses what containerd could not make use of.
func checkSnapshotter(ctx *cli.Context) error {
	for _, name := range []string{"snapshotter", "snapshotter-root"} {
		path := ctx.String(name)
		if program := ctx.String("for"); path != "" && (program == forPodman || program == forDocker) {
			return errSnapshotter
		}
		if path != "" && !filepath.IsAbs(path) {
			return fmt.Errorf("--%s: %q is relative, and containerd runs in another folder; begin it with /", name, path)
		}
	}
	if ctx.String("snapshotter") == "" && ctx.String("snapshotter-root") != "" {
		return errRootAlone
	}
	return config.CheckSocket(ctx.String("snapshotter"))
}

// configureContainerd writes the hosts.toml files, and tells what containerd's configuration needs besides.
func configureContainerd(ctx *cli.Context, cfg hosts.Config) error {
	version, err := findConfigVersion(ctx.Context, ctx.String("containerd-config"), ctx.Int("config-version"))
	if _, wrong := errors.AsType[*exitError](err); wrong {
		return err
	}
	if file := ctx.String("containerd-config"); version.version == 1 && ctx.String("snapshotter") != "" { // before anything is written
		return fmt.Errorf("%s is of version 1, which has no place for snapshotters of others; begin it with version = 2", file)
	}
	changes, planErr := hosts.PlanConfigure(cfg)
	if err := applyHosts(ctx, changes, planErr); err != nil {
		return err
	}
	if err != nil {
		return fmt.Errorf("the mirror is configured, but whether containerd reads it is not known: %w", err)
	}
	if err := reportContainerd(ctx, version); err != nil {
		return err
	}
	return printSnapshotter(ctx, version)
}

// printSnapshotter prints what the user has to put into containerd's configuration. It is no block of ours in that file: containerd has to be
// restarted for it, and the sections may be there already.
func printSnapshotter(ctx *cli.Context, v configVersion) error {
	address, config := ctx.String("snapshotter"), ctx.String("containerd-config")
	if address == "" {
		return nil
	}
	fmt.Fprintf(ctx.App.ErrWriter, "\nput this into %s and restart containerd once; it is of version %d, %s:\n\n", config, v.version, v.reason)
	root := cmp.Or(ctx.String("snapshotter-root"), filepath.Join(filepath.Dir(address), "snapshots"))
	text := hosts.SnapshotterConfig(v.version, address, root)
	if v.missing {
		text = fmt.Sprintf("version = %d\n%s", v.version, text)
	}
	_, err := io.WriteString(ctx.App.Writer, text)
	return err
}

func mirrorRemoveCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "remove",
		Usage: "take the mirror out of the registry configuration",
		Flags: mirrorFlags(
			&cli.StringSliceFlag{Name: "registry", Usage: "`HOST` or HOST:PORT to leave alone from now on, can be repeated; without it all"},
		),
		Action: func(ctx *cli.Context) error {
			cfg := hosts.Config{CertsDir: ctx.String("certs-dir"), Mirror: ctx.String("mirror"), Registries: mirrorRegistries(ctx)}
			if err := cfg.Validate(); err != nil {
				return usageError(err)
			}
			switch ctx.String("for") {
			case forPodman:
				if len(cfg.Registries) > 0 {
					return usageError(errPodmanRemove)
				}
				change, err := hosts.PlanContainersRemove(ctx.String("registries-dir"))
				return applyHosts(ctx, []hosts.Change{change}, err)
			case forDocker:
				if len(cfg.Registries) > 0 {
					return usageError(errDockerRegistry)
				}
				change, err := hosts.PlanDockerRemove(cfg, ctx.String("docker-config"))
				if err := applyHosts(ctx, []hosts.Change{change}, err); err != nil || !change.Changed() {
					return err
				}
				fmt.Fprintln(ctx.App.ErrWriter, dockerReload)
				return nil
			case forContainerd:
			default:
				return usageError(errFor)
			}
			changes, err := hosts.PlanRemove(cfg)
			if len(changes) == 0 && err == nil {
				fmt.Fprintf(ctx.App.ErrWriter, "no file below %s has the mirror\n", ctx.String("certs-dir"))
			}
			return applyHosts(ctx, changes, err)
		},
	})
}

func mirrorRegistries(ctx *cli.Context) []hosts.Registry {
	var out []hosts.Registry
	for _, host := range ctx.StringSlice("registry") {
		out = append(out, hosts.Registry{Host: host})
	}
	for _, host := range ctx.StringSlice("plain-http") {
		out = append(out, hosts.Registry{Host: host, PlainHTTP: true})
	}
	return out
}

// applyHosts carries a plan out, or shows it. A plan with an error is carried out in no part.
func applyHosts(ctx *cli.Context, changes []hosts.Change, err error) error {
	if err != nil {
		return needRoot(err)
	}
	if ctx.Bool("dry-run") {
		for _, c := range changes {
			fmt.Fprint(ctx.App.Writer, c.Diff())
		}
	} else if err := hosts.Apply(changes); err != nil {
		return needRoot(err)
	}
	for _, c := range changes {
		switch {
		case !c.Changed():
			fmt.Fprintf(ctx.App.ErrWriter, "%s: nothing to do: %s\n", c.Path, c.Note)
		case ctx.Bool("dry-run"):
		case c.After == nil:
			fmt.Fprintf(ctx.App.ErrWriter, "%s: removed\n", c.Path)
		default:
			fmt.Fprintf(ctx.App.ErrWriter, "%s: written\n", c.Path)
		}
	}
	return nil
}

func needRoot(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: run this as root", err)
	}
	return err
}

// reportContainerd tells when what was written is not read. That is no failure: pulls by other clients may read it.
func reportContainerd(ctx *cli.Context, v configVersion) error {
	certsDir, err := filepath.Abs(ctx.String("certs-dir")) // containerd does not know where we stand
	if err != nil {
		return err
	}
	err = hosts.CheckContainerd(ctx.String("containerd-config"), certsDir)
	if notRead, ok := errors.AsType[*hosts.NotReadError](err); ok {
		notRead.Version = max(notRead.Version, v.version)
		notRead.Missing = v.missing && ctx.String("snapshotter") == "" // else the first line comes with the rest
		fmt.Fprintf(ctx.App.ErrWriter, "\nnote: %v\n", notRead)
		return nil
	}
	if err != nil {
		return fmt.Errorf("the mirror is configured, but whether containerd reads it is not known: %w", needRoot(err))
	}
	return nil
}
