// Package converter makes an image out of a model and a base image: one index with a plain and a Nydus manifest for each platform of the base,
// which share the model's bytes. Or it gives an image that there is its Nydus variant.
//
//	openModel, openBases   what goes in is found and checked: package source
//	readBase               each base layer is read once: verified, merged into a tree, cut into a Nydus blob
//	readModel              each model layer is written by package layer, on its way to the target
//	addModel               the model's files are merged over each platform's tree
//	finish                 bootstraps, configurations, manifests; last of all the index under the tag: package image
//
// Where it goes, and where images come from, is a registry or an OCI layout: package repository. Nothing is tagged before all it leads to is
// there.
//
// The model is never copied. Where it is on disk and the target is a registry, it is read twice: hashed, and then
// only what the registry has not got is read again for the upload. Everywhere else it is read once. A base layer's Nydus blob is held in a temporary
// file until it is uploaded. Memory does not grow with the size of files, but with their number.
//
// Check, Inspect, Diff and Copy read what Convert has made, and other images as far as that goes.
package converter
