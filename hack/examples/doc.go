// Package examples runs the examples of the documentation as they stand there, so that they cannot rot: blocks of shell, Dockerfiles, and
// the steps of pipelines for GitHub Actions and GitLab CI. Registry, object store, hub and docker are real and on this machine.
package examples
