package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// kubeletPort is where a kubelet tells of its pods, on its host's loopback.
const kubeletPort = "10255"

// A Kubelet is a real one without a cluster: it runs the pods whose manifests are in a folder.
type Kubelet struct {
	*Process

	host       *Host
	dir        string
	containerd *Containerd
}

// kubeletConfig: no rights, limits or evictions, which are not of interest here and would touch the machine.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: %[1]s/manifests
podLogsDir: %[1]s/logs
containerRuntimeEndpoint: unix://%[2]s
address: 127.0.0.1
readOnlyPort: %[3]s
healthzPort: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
syncFrequency: 2s
fileCheckFrequency: 1s
evictionHard: {memory.available: 1Mi}
`

// StartKubelet runs a kubelet on the host over its containerd, which has to be one with ContainerdConfig.CRI. It has the credentials for the
// registry, as a node's own, since pods without a cluster have no secrets.
func (h *Host) StartKubelet(ctx context.Context, c *Containerd, r *Registry, login Login) (*Kubelet, error) {
	k := &Kubelet{host: h, dir: filepath.Join(h.Dir, "kubelet"), containerd: c}
	for _, folder := range []string{"manifests", "logs", "root"} {
		if err := os.MkdirAll(filepath.Join(k.dir, folder), 0o755); err != nil {
			return nil, err
		}
	}
	config := filepath.Join(k.dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, kubeletConfig, k.dir, c.Socket(), kubeletPort), 0o644); err != nil {
		return nil, err
	}
	if err := login.WriteConfig(filepath.Join(k.dir, "root"), r); err != nil {
		return nil, err
	}
	var err error
	k.Process, err = h.Start("kubelet", []string{"kubelet", "--config", config, "--root-dir", filepath.Join(k.dir, "root"),
		"--cert-dir", filepath.Join(k.dir, "pki"), "--hostname-override", h.Name}, nil)
	if err != nil {
		return nil, err
	}
	return k, k.waitHealthy(ctx, h.client, k.url())
}

func (k *Kubelet) url() string { return "http://127.0.0.1:" + kubeletPort + "/pods" }

// A Pod is what a Kubelet is to run, on the host's network.
type Pod struct {
	Name   string
	Image  string // pulled always; its entrypoint waits
	Volume string // an image that is mounted as a volume
	File   string // a file in that, which the image's entrypoint is to check before
	SHA256 string // of the file, hexadecimal
}

// manifest returns the pod as Kubernetes writes it.
func (p Pod) manifest() ([]byte, error) {
	container := map[string]any{"name": "main", "image": p.Image, "imagePullPolicy": "Always"}
	check := map[string]any{"name": "check", "image": p.Image, "imagePullPolicy": "Always", "args": []string{"/volume/" + p.File, p.SHA256},
		"volumeMounts": []any{map[string]any{"name": "image", "mountPath": "/volume", "readOnly": true}}}
	return json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": p.Name, "namespace": "default"},
		"spec": map[string]any{"hostNetwork": true, "terminationGracePeriodSeconds": 1, "initContainers": []any{check}, "containers": []any{container},
			"volumes": []any{map[string]any{"name": "image", "image": map[string]any{"reference": p.Volume, "pullPolicy": "Always"}}}}})
}

// Run has the kubelet run a pod.
func (k *Kubelet) Run(p Pod) error {
	text, err := p.manifest()
	if err != nil {
		return err
	}
	// In one step: the kubelet looks all the time.
	part := filepath.Join(k.dir, p.Name+".json")
	if err := os.WriteFile(part, text, 0o644); err != nil {
		return err
	}
	return os.Rename(part, filepath.Join(k.dir, "manifests", p.Name+".json"))
}

// RemoveAll has the kubelet end all pods and waits until they are gone.
func (k *Kubelet) RemoveAll(ctx context.Context) error {
	manifests, err := filepath.Glob(filepath.Join(k.dir, "manifests", "*"))
	for _, path := range manifests {
		err = errors.Join(err, os.Remove(path))
	}
	if err != nil {
		return err
	}
	err = k.waitFor(ctx, "the end of its pods", func() bool {
		pods, err := k.pods(ctx)
		if err != nil || len(pods) > 0 {
			return false
		}
		tasks, err := k.containerd.Ctr(ctx, "tasks", "list", "--quiet")
		return err == nil && strings.TrimSpace(tasks) == ""
	})
	return errors.Join(err, k.removeTraces(ctx))
}

// removeTraces removes what a kubelet and its containerd make at fixed places and leave to their next start: links to the logs of containers,
// and their control groups.
func (k *Kubelet) removeTraces(ctx context.Context) error {
	const logs = "/var/log/containers"
	links, err := filepath.Glob(logs + "/*")
	for _, link := range links {
		if target, readErr := os.Readlink(link); readErr == nil && strings.HasPrefix(target, k.dir+"/") {
			err = errors.Join(err, os.Remove(link))
		}
	}
	ids, listErr := k.containerd.Ctr(ctx, "containers", "list", "--quiet")
	parents, globErr := filepath.Glob(cgroupDir + "/*/k8s.io")
	var folders []string
	for _, parent := range append(parents, filepath.Join(cgroupDir, "k8s.io")) {
		for id := range strings.FieldsSeq(ids) {
			folders = append(folders, filepath.Join(parent, id))
		}
		folders = append(folders, parent)
	}
	for _, folder := range append(folders, logs) {
		_ = os.Remove(folder) // only if empty: another one may use it
	}
	return errors.Join(err, listErr, globErr)
}

// WaitRunning waits until the pods run whose names are given.
func (k *Kubelet) WaitRunning(ctx context.Context, names ...string) error {
	var last map[string]string
	err := k.waitFor(ctx, "pods that run: "+strings.Join(names, ", "), func() bool {
		pods, err := k.pods(ctx)
		if err != nil {
			return false
		}
		last = pods
		for _, name := range names {
			if pods[name+"-"+k.host.Name] != "Running" {
				return false
			}
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("pods %v: %w", last, err)
	}
	return nil
}

// pods returns the phase of each pod.
func (k *Kubelet) pods(ctx context.Context) (map[string]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := k.host.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct{ Phase string }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return nil, err
	}
	phases := map[string]string{}
	for _, p := range list.Items {
		phases[p.Metadata.Name] = p.Status.Phase
	}
	return phases, nil
}
