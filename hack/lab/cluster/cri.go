package cluster

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Login is a user's name and password at a registry; the zero value is nobody.
type Login struct{ User, Password string }

// WriteConfig writes Docker's configuration with the login at a registry into a folder.
func (l Login) WriteConfig(folder string, r *Registry) error {
	text, err := json.Marshal(map[string]any{"auths": map[string]any{r.Addr(): map[string]string{"username": l.User, "password": l.Password,
		"auth": base64.StdEncoding.EncodeToString([]byte(l.User + ":" + l.Password))}}})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "config.json"), text, 0o600)
}

// PullCRI has containerd pull an image as the kubelet has it do: over the container runtime interface, with the credentials that an
// imagePullSecret holds. Its containerd is one with ContainerdConfig.CRI.
func (c *Containerd) PullCRI(ctx context.Context, ref string, login Login) error {
	images, closing, err := c.imageService()
	if err != nil {
		return err
	}
	defer closing()
	request := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}
	if login != (Login{}) {
		request.Auth = &runtimeapi.AuthConfig{Username: login.User, Password: login.Password}
	}
	if _, err := images.PullImage(ctx, request); err != nil {
		return fmt.Errorf("on %s: pull %s: %w", c.host.Name, ref, err)
	}
	return nil
}

// CollectCRI has containerd remove all images but those of sandboxes, over the container runtime interface as the kubelet does that is short of disk.
func (c *Containerd) CollectCRI(ctx context.Context) error {
	images, closing, err := c.imageService()
	if err != nil {
		return err
	}
	defer closing()
	list, err := images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("on %s: %w", c.host.Name, err)
	}
	for _, i := range list.Images {
		if i.Pinned {
			continue
		}
		if _, err := images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}}); err != nil {
			return fmt.Errorf("on %s: remove %v: %w", c.host.Name, i.RepoTags, err)
		}
	}
	return nil
}

// imageService returns the container runtime interface's part for images, until closing is called.
func (c *Containerd) imageService() (images runtimeapi.ImageServiceClient, closing func(), err error) {
	conn, err := grpc.NewClient("unix://"+c.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return runtimeapi.NewImageServiceClient(conn), func() { _ = conn.Close() }, nil // all answers are there
}
