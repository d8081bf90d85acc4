// Package lazy mounts images before their bytes are there.
package lazy
