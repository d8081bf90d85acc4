// Package converter makes an image out of a model folder and a base image and pushes it: one index with a plain and a Nydus
// manifest that share the model's bytes.
//
//	source   the base image and the model folder are found and checked
//	frame    each base layer is read once: verified, merged into the tree, cut into a Nydus blob
//	model    each model layer is planned, hashed (first pass), uploaded (second pass)
//	assemble bootstrap, configurations, manifests, index
//	push     blobs, then both manifests, then the index under the tag
//
// Nothing is tagged before all it leads to is in the registry. The model is never copied: it is read twice. A base layer's
// Nydus blob is held in a temporary file until it is uploaded. Memory does not grow with the size of files, but with their number.
package converter
