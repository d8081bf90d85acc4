package main

import (
	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/cmd/internal/daemon"
)

const nodeHelp = `Serves containerd and other OCI clients at mirror.listen out of the peer network, and other nodes at
peer.listen. Without a scheduler it reads every blob from its origin once, verifies and keeps it.

Everything can be set in a YAML file; the flags below override it. An unknown key is an error. Defaults:

   name: HOSTNAME
   data_dir: /var/lib/shoal
   mirror:                                  # how long a tag, and accepted credentials, are believed; and while the registry is down
      {listen: 127.0.0.1:7701, default_registry: "", tag_ttl: 5s, verdict_ttl: 1m, stale_for: 24h, access_log: false,
      configure: {certs_dir: "", registries: []}}   # with containerd's config_path: hosts.toml is written when ready, and taken back when stopped
   peer: {listen: 0.0.0.0:7702, advertise: "", zone: "", rack: "", group: ""}
   admin: {listen: 127.0.0.1:7703}          # /healthz, /metrics, /limits and /pins
   seed: false                              # a seed reads origins for the others
   schedulers: []                           # http://HOST:7700, or dns+http://NAME:7700 for all addresses of NAME; https:// with cluster.tls
   peers: []                                # instead of schedulers: HOST:7702 of all nodes, the same list on each
   cluster: {token_file: "", tls: {ca_file: "", cert_file: "", key_file: ""}, insecure: false}
   registries: {}                           # HOST: {url: https://MIRROR/PREFIX, plain_http: true, ca_file: FILE}
   store: {max_bytes: 0, max_percent: 80}   # bytes, or like 500GiB, 0 is no bound; of what other files leave of the disk
   limits:                                  # bytes a second, like 100MiB; 0 is none; see shoal limits
      {upload: 0, upload_per_task: 0, download: 0, download_per_task: 0, source: 0, source_per_task: 0, disk_write: 0}
   snapshotter:                             # auto: where it can run; paths are snapshots and snapshotter.sock in data_dir;
      {enabled: auto, driver: auto, root: "", address: "", mount: [], prefetch: ""}   # mount: [registry.example/models/**] has these images mounted, not unpacked
   log: {level: info, format: text}
   tracing: {endpoint: "", sample: 0}       # spans for a collector of OpenTelemetry at http://HOST:4318; a share of 0.01 to 1

Credentials for origins are those of docker login of the user the daemon runs as, besides those that callers bring.
Point containerd at it with: shoal mirror configure

EXAMPLES:
   shoal node
   shoal node --scheduler http://10.0.0.1:7700 --token-file /etc/shoal/token
   shoal node --config /etc/shoal/node.yaml --seed`

func nodeCommand() *cli.Command {
	return command(&cli.Command{
		Name:        "node",
		Usage:       "run the daemon of a node: registry mirror, peer and snapshotter in one",
		Description: nodeHelp,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "read the configuration from `FILE`"},
			&cli.StringFlag{Name: "name", Usage: "`NAME` of this host in the cluster"},
			&cli.StringFlag{Name: "data-dir", Usage: "keep blobs and state below `DIR`"},
			&cli.StringFlag{Name: "mirror-listen", Usage: "serve containerd at `HOST:PORT`"},
			&cli.StringFlag{Name: "peer-listen", Usage: "serve other nodes at `HOST:PORT`"},
			&cli.StringFlag{Name: "advertise", Usage: "tell other nodes `HOST:PORT` as the address of peer-listen"},
			&cli.StringFlag{Name: "admin-listen", Usage: "serve /healthz and /metrics at `HOST:PORT`"},
			&cli.StringFlag{Name: "zone", Usage: "this host is in `ZONE`"},
			&cli.StringFlag{Name: "rack", Usage: "this host is in `RACK` of its zone"},
			&cli.StringFlag{Name: "group", Usage: "share with nodes of `GROUP` only"},
			&cli.StringSliceFlag{Name: "scheduler", Usage: "use the scheduler at `URL`; may be repeated"},
			&cli.StringSliceFlag{Name: "peer", Usage: "without a scheduler: a node of the cluster is at `HOST:PORT`; once for each of them"},
			&cli.BoolFlag{Name: "seed", Usage: "read origins for the other nodes"},
			&cli.StringFlag{Name: "token-file", Usage: "the cluster's secret is in `FILE`"},
			&cli.BoolFlag{Name: "insecure", Usage: "do without a secret"},
			&cli.StringSliceFlag{Name: "plain-http", Usage: "speak HTTP without TLS to registry `HOST`; may be repeated"},
			&cli.StringFlag{Name: "log-level", Usage: "debug, info, warn or error"},
		},
		Action: func(c *cli.Context) error {
			cfg, err := nodeConfig(c)
			if err != nil {
				return err
			}
			return daemon.RunNode(c.Context, cfg, buildVersion(), c.App.ErrWriter)
		},
	})
}

// nodeConfig reads the configuration; its errors are those of usage.
func nodeConfig(c *cli.Context) (config.Node, error) {
	cfg := config.DefaultNode()
	if err := config.Load(c.String("config"), &cfg); err != nil {
		return cfg, usageError(err)
	}
	overrideNode(c, &cfg)
	if err := cfg.Validate(); err != nil {
		return cfg, usageError(oneLine(err))
	}
	return cfg, nil
}

// overrideNode lets flags win over the file.
func overrideNode(c *cli.Context, cfg *config.Node) {
	for flag, field := range map[string]*string{
		"name": &cfg.Name, "data-dir": &cfg.DataDir, "mirror-listen": &cfg.Mirror.Listen, "peer-listen": &cfg.Peer.Listen,
		"advertise": &cfg.Peer.Advertise, "admin-listen": &cfg.Admin.Listen, "zone": &cfg.Peer.Zone, "rack": &cfg.Peer.Rack, "group": &cfg.Peer.Group, "log-level": &cfg.Log.Level,
	} {
		if c.IsSet(flag) {
			*field = c.String(flag)
		}
	}
	if c.IsSet("scheduler") {
		cfg.Schedulers = c.StringSlice("scheduler")
	}
	if c.IsSet("peer") {
		cfg.Peers = c.StringSlice("peer")
	}
	if c.IsSet("seed") {
		cfg.Seed = c.Bool("seed")
	}
	overrideCluster(c, &cfg.Cluster)
	for _, host := range c.StringSlice("plain-http") {
		if cfg.Registries == nil {
			cfg.Registries = map[string]config.Registry{}
		}
		r := cfg.Registries[host]
		r.PlainHTTP = true
		cfg.Registries[host] = r
	}
}

func overrideCluster(c *cli.Context, cluster *config.Cluster) {
	if c.IsSet("token-file") {
		cluster.TokenFile, cluster.Insecure = c.String("token-file"), false
	}
	if c.IsSet("insecure") {
		cluster.Insecure = c.Bool("insecure")
		cluster.TokenFile, cluster.TLS = "", config.TLS{}
	}
}
