package main

import (
	"errors"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/cmd/internal/daemon"
)

func schedulerCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "scheduler",
		Usage: "run a scheduler: it decides which host reads the origin and who gets pieces from whom",
		Description: `Keeps all state in memory and learns it from the hosts again after a restart. Hosts go on without it, with the
peers they know. Several schedulers share the tasks when every node names all of them.

Everything can be set in a YAML file; the flags below override it. An unknown key is an error. Defaults:

   listen: 0.0.0.0:7700                     # hosts, /healthz, /metrics and /limits
   admin: {listen: ""}                      # HOST:PORT: /healthz and /metrics there instead
   cluster: {token_file: "", tls: {ca_file: "", cert_file: "", key_file: ""}, insecure: false}
   limits: {source: 0}                      # bytes a second all hosts together read from origins, like 500MiB
   networks: []                             # where nodes stand that do not say: {cidr: 10.1.0.0/16, zone: "", rack: "", group: ""}
   near: 10ms                               # longest round trip in a zone, of nodes without one; 0 does not measure
   log: {level: info, format: text}
   tracing: {endpoint: "", sample: 0}       # spans of what is done for nodes that trace; http://HOST:4318

EXAMPLES:
   mkdir -p /etc/shoal && (umask 077; head -c 32 /dev/urandom | base64 > /etc/shoal/token)
   shoal scheduler --token-file /etc/shoal/token`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "read the configuration from `FILE`"},
			&cli.StringFlag{Name: "listen", Usage: "serve hosts at `HOST:PORT`"},
			&cli.StringFlag{Name: "admin-listen", Usage: "serve /healthz and /metrics at `HOST:PORT` instead"},
			&cli.StringFlag{Name: "token-file", Usage: "the cluster's secret is in `FILE`"},
			&cli.BoolFlag{Name: "insecure", Usage: "do without a secret"},
			&cli.StringFlag{Name: "log-level", Usage: "debug, info, warn or error"},
		},
		Action: func(c *cli.Context) error {
			cfg := config.DefaultScheduler()
			if err := config.Load(c.String("config"), &cfg); err != nil {
				return usageError(err)
			}
			if c.IsSet("listen") {
				cfg.Listen = c.String("listen")
			}
			if c.IsSet("admin-listen") {
				cfg.Admin.Listen = c.String("admin-listen")
			}
			if c.IsSet("log-level") {
				cfg.Log.Level = c.String("log-level")
			}
			overrideCluster(c, &cfg.Cluster)
			if err := cfg.Validate(); err != nil {
				return usageError(oneLine(err))
			}
			return daemon.RunScheduler(c.Context, cfg, buildVersion(), c.App.ErrWriter)
		},
	})
}

// oneLine joins the faults of a configuration on one line.
func oneLine(err error) error {
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}
