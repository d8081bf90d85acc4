package source

import (
	"fmt"
	"net/url"
	"os"
	"strings"
)

// spelling says what to write instead of a model's name that other tools would take, but this one does not; "" if it knows nothing.
func spelling(ref string) string {
	ref = printable(ref)
	mark, rest, _ := strings.Cut(ref, ":")
	bare := strings.TrimLeft(rest, "/")
	switch mark {
	case "oci":
		return layoutAdvice(rest)
	case "docker":
		return "write oci://" + bare
	case "docker-daemon", "docker-archive", "containers-storage", "oci-archive", "dir":
		return "models are read from registries only; push it to one, and write oci://REGISTRY/NAME:TAG"
	case "hf", "s3", "http", "https", "huggingface":
		if mark == "huggingface" {
			mark = "hf"
		}
		return fmt.Sprintf("write %s://%s", mark, bare)
	case "gs", "gcs":
		return fmt.Sprintf("Google's buckets are read as those of S3, with an HMAC key in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: "+
			"--model s3://%s --s3-endpoint https://storage.googleapis.com", bare)
	case "az", "azure", "abfs", "abfss", "wasb", "wasbs", "ms", "modelscope", "ollama", "pvc", "nfs", "hdfs", "ftp", "sftp":
		return "it is not read from there; download or mount it, and give the folder"
	case "git", "ssh", "git+https", "git+ssh", "git@github.com", "git@hf.co", "git@huggingface.co":
		return "clone it, fetch its large files with git lfs pull, and give the folder"
	}
	return hubSpelling(ref)
}

// layoutAdvice is for oci:FOLDER:TAG and oci:REGISTRY/NAME:TAG.
func layoutAdvice(rest string) string {
	folder := rest
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		folder = rest[:i]
	}
	if info, err := os.Stat(folder); err == nil && info.IsDir() || strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "/") {
		return fmt.Sprintf("models are not read from OCI layouts, only from registries; push it to one, shoal push oci:%s REGISTRY/NAME:TAG, "+
			"and write oci://REGISTRY/NAME:TAG", rest)
	}
	return "a registry is written oci://" + rest
}

// hubSpelling is for the address of a model's page at a hub, with or without https:// before it.
func hubSpelling(ref string) string {
	u, err := url.Parse(ref)
	if err != nil || u.Host == "" {
		if u, err = url.Parse("https://" + ref); err != nil {
			return ""
		}
	}
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	switch host := strings.TrimPrefix(u.Host, "www."); {
	case host != "huggingface.co" && host != "hf.co" || parts[0] == "":
		return ""
	case len(parts) <= 2:
		return "a model at the hub is written hf://" + strings.Join(parts, "/")
	case len(parts) >= 4 && parts[2] == "tree":
		return "a model at the hub is written hf://" + strings.Join(parts[:2], "/") + "@" + parts[3]
	}
	return "" // a file there has an address of its own
}
