package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

const privateRepository, publicRepository = "lab/private", "lab/public"

// privateRig is a registry that wants credentials, and two nodes with containerds: the first one believes the last verdict while the
// registry is down, the second one does not.
type privateRig struct {
	*cluster.Cluster
	registry    *cluster.Registry
	nodes       []*cluster.Node
	containerds []*cluster.Containerd
	private     rigImage
}

const verdictTTL = 2 * time.Second

// newPrivateRig makes the cluster and pushes the private image; the test's end removes the cluster.
func newPrivateRig(ctx context.Context, t *testing.T, shoal string, start func(*cluster.Cluster) (*cluster.Registry, error)) *privateRig {
	t.Helper()
	c, err := cluster.New(ctx, cluster.Config{Shoal: shoal, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &privateRig{Cluster: c}
	if r.registry, err = start(c); err != nil {
		t.Fatal(err)
	}
	scheduler, err := c.StartScheduler(ctx, "scheduler")
	if err != nil {
		t.Fatal(err)
	}
	for i, stale := range []string{"1h", "0s"} {
		n, err := c.StartNode(ctx, cluster.NodeConfig{Name: fmt.Sprintf("node-%d", i+1), Schedulers: []*cluster.Scheduler{scheduler},
			Registries: []*cluster.Registry{r.registry}, TagTTL: "0s", VerdictTTL: verdictTTL.String(), StaleFor: stale})
		if err != nil {
			t.Fatal(err)
		}
		d, err := n.Host().StartContainerdAs(ctx, cluster.ContainerdConfig{CRI: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.ConfigureMirror(ctx, d, r.registry); err != nil {
			t.Fatal(err)
		}
		r.nodes, r.containerds = append(r.nodes, n), append(r.containerds, d)
	}
	r.private = r.push(ctx, t, privateRepository)
	return r
}

func (r *privateRig) push(ctx context.Context, t *testing.T, repository string) rigImage {
	t.Helper()
	img, err := cluster.RandomImage(r.Dir(), uint64(time.Now().UnixNano()), 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.registry.Push(ctx, repository, "1", img); err != nil {
		t.Fatal(err)
	}
	i := rigImage{tag: "1"}
	if i.blobs, err = layersOf(img); err != nil {
		t.Fatal(err)
	}
	return i
}

// ref names an image with its registry.
func (r *privateRig) ref(repository string) string {
	return r.registry.Addr() + "/" + repository + ":1"
}

// pull pulls over the kubelet's interface and as ctr does, and reports whether both could; that only one can is a failure of the test.
func (r *privateRig) pull(ctx context.Context, t *testing.T, node int, repository string, login cluster.Login) bool {
	t.Helper()
	d := r.containerds[node]
	cri := d.PullCRI(ctx, r.ref(repository), login)
	forget := func() { // the next pull asks for everything again
		if err := d.ForgetAll(ctx); err != nil {
			t.Error(err)
		}
	}
	if cri == nil {
		forget()
	}
	args := []string{"images", "pull", "--plain-http", "--hosts-dir", d.HostsDir()}
	if login != (cluster.Login{}) {
		args = append(args, "--user", login.User+":"+login.Password)
	}
	_, ctr := d.Ctr(ctx, append(args, r.ref(repository))...)
	if ctr == nil {
		forget()
	}
	if (cri == nil) != (ctr == nil) {
		t.Errorf("%q on node %d: over the kubelet's interface: %v; by ctr: %v", login.User, node, cri, ctr)
	}
	return cri == nil
}

// blob asks a node's mirror for the private layer by plain HTTP and returns the status; of what is served, the bytes are checked.
func (r *privateRig) blob(ctx context.Context, t *testing.T, node int, authorization string) int {
	t.Helper()
	n, layer := r.nodes[node], r.private.blobs[0]
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		n.MirrorURL()+"/v2/"+privateRepository+"/blobs/"+layer.digest.String()+"?ns="+r.registry.Addr(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := n.Host().Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == http.StatusOK && int64(len(body)) != layer.size {
		t.Errorf("%d bytes of %d", len(body), layer.size)
	}
	return resp.StatusCode
}

// sent returns how many bytes of blobs a node's mirror has sent.
func (r *privateRig) sent(ctx context.Context, t *testing.T, node int) float64 {
	t.Helper()
	m, err := r.nodes[node].Metrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m.Sum("shoal_mirror_sent_bytes_total")
}

// checkWhoMayPull has everybody pull on both nodes; the second one has what the owner pulled on the first one from there.
func (r *privateRig) checkWhoMayPull(ctx context.Context, t *testing.T, owner, stranger cluster.Login) {
	t.Helper()
	for node := range r.nodes {
		for _, who := range []cluster.Login{stranger, {}} {
			if r.pull(ctx, t, node, privateRepository, who) {
				t.Errorf("%q pulled the private image on node %d", who.User, node)
			}
		}
		before := r.sent(ctx, t, node)
		if !r.pull(ctx, t, node, privateRepository, owner) {
			t.Fatalf("the owner cannot pull on node %d", node)
		}
		if got := r.sent(ctx, t, node) - before; got < 2*float64(r.private.blobs[0].size) {
			t.Errorf("node %d sent %.0f bytes to the owner: the pulls went past it", node, got)
		}
		before = r.sent(ctx, t, node)
		for _, who := range []cluster.Login{stranger, {}} { // now that the node holds it
			if r.pull(ctx, t, node, privateRepository, who) {
				t.Errorf("%q pulled the private image on node %d, which held it", who.User, node)
			}
		}
		if got := r.sent(ctx, t, node) - before; got != 0 {
			t.Errorf("node %d sent %.0f bytes to strangers", node, got)
		}
	}
}

func basic(l cluster.Login) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(l.User+":"+l.Password))
}

func privateTools() []string { return []string{"ip", "tc", "docker-registry", "containerd", "ctr"} }

func TestRootPrivateImagesGoToThoseWithThePasswordAlone(t *testing.T) {
	ctx, shoal := prepare(t, privateTools()...)
	owner, stranger := cluster.Login{User: "owner", Password: "right"}, cluster.Login{User: "owner", Password: "wrong"}
	other := cluster.Login{User: "other", Password: "too"}
	r := newPrivateRig(ctx, t, shoal, func(c *cluster.Cluster) (*cluster.Registry, error) {
		return c.StartPasswordRegistry(ctx, owner, other)
	})
	r.checkWhoMayPull(ctx, t, owner, stranger)
	for login, want := range map[cluster.Login]int{owner: 200, stranger: 401, other: 200} {
		if got := r.blob(ctx, t, 0, basic(login)); got != want {
			t.Errorf("%s by plain HTTP: status %d, want %d", login, got, want)
		}
	}
	if got := r.blob(ctx, t, 0, ""); got != 401 {
		t.Errorf("nobody by plain HTTP: status %d, want 401", got)
	}

	// The registry takes one password back.
	if err := r.registry.SetUsers(owner); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for r.blob(ctx, t, 0, basic(other)) != 401 {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("still served %v after the registry took the password back; verdicts are kept for %v", time.Since(began), verdictTTL)
		}
		time.Sleep(100 * time.Millisecond)
	}

	r.registry.Kill()
	time.Sleep(verdictTTL) // not a state to wait for: the verdicts have to be old
	if !r.pull(ctx, t, 0, privateRepository, owner) {
		t.Error("with the registry down, the owner cannot pull from the node that believes the last verdict")
	}
	for _, who := range []cluster.Login{stranger, other, {}} {
		if r.pull(ctx, t, 0, privateRepository, who) || r.blob(ctx, t, 0, basic(who)) == 200 {
			t.Errorf("with the registry down, %s can pull", who)
		}
	}
	if r.pull(ctx, t, 1, privateRepository, owner) || r.blob(ctx, t, 1, basic(owner)) == 200 {
		t.Error("with the registry down, the owner can pull from the node that believes no old verdict")
	}
}

func TestRootPrivateImagesGoToThoseWithATokenForThemAlone(t *testing.T) {
	ctx, shoal := prepare(t, append(privateTools(), "podman")...)
	owner, stranger := cluster.Login{User: "owner", Password: "right"}, cluster.Login{User: "stranger", Password: "known"}
	r := newPrivateRig(ctx, t, shoal, func(c *cluster.Cluster) (*cluster.Registry, error) {
		return c.StartTokenRegistry(ctx, owner, cluster.Grants{stranger: {"lab/other"}, {}: {publicRepository}})
	})
	r.checkWhoMayPull(ctx, t, owner, stranger)
	for login, want := range map[cluster.Login]int{owner: 200, stranger: 401} {
		if got := r.blob(ctx, t, 0, "Bearer "+r.token(ctx, t, login)); got != want {
			t.Errorf("%s by plain HTTP: status %d, want %d", login, got, want)
		}
	}
	if got := r.blob(ctx, t, 0, ""); got != 401 {
		t.Errorf("nobody by plain HTTP: status %d, want 401", got)
	}

	r.push(ctx, t, publicRepository)
	before := r.sent(ctx, t, 0)
	if !r.pull(ctx, t, 0, publicRepository, cluster.Login{}) {
		t.Error("nobody can pull the public image")
	}
	if got := r.sent(ctx, t, 0) - before; got == 0 {
		t.Error("the public image went past the mirror")
	}
}

// token fetches a token for the private repository.
func (r *privateRig) token(ctx context.Context, t *testing.T, login cluster.Login) string {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		"http://"+r.registry.Addr()+"/token?service=lab&scope=repository:"+privateRepository+":pull", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(login.User, login.Password)
	resp, err := r.nodes[0].Host().Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Token == "" {
		t.Fatalf("token for %s: %s, %v", login.User, resp.Status, err)
	}
	return answer.Token
}
