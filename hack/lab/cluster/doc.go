// Package cluster builds clusters on one machine: hosts that are network namespaces on a switch of their own, links with
// a rate, and on them the real programs: a registry, containerd, shoal's daemons. It counts what the registry served,
// injects faults, and removes all it made.
//
//	          shoal-RUN-switch (a namespace with a bridge)
//	   ┌───────────┬──────┴──────┬─────────────┐      each line is a veth pair, limited both ways by tc
//	registry    scheduler      seed         node-1 …   each a namespace shoal-RUN-NAME with eth0 10.77.0.N and lo
//
// Nothing is visible outside of these namespaces: no address, no bridge and no rule of the machine is touched, and runs
// beside each other do not meet. Files are below one folder, /tmp/shoal-lab-RUN, which is locked while its run lives;
// Leftovers finds what killed runs left.
//
// New makes the switch, AddHost a host; Host.Start runs a program there. Close ends the programs, unmounts, and removes
// the namespaces and the folder. A Cluster and its parts may be used by many goroutines; Close only by one.
package cluster
