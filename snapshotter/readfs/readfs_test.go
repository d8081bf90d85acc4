package readfs_test

import "math/rand/v2"

func noise(seed byte, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed, 1}).Read(out)
	return out
}
