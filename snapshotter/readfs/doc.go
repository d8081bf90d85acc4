// Package readfs shows an image as a read-only file tree: a decoded bootstrap with the blobs it names. It is an io/fs.FS,
// and for who knows the inode it reads any range of any file.
//
//	New       takes the bootstrap and the way to open a blob
//	Open …    find inodes by path; symbolic links are followed within the tree
//	ReadAt    reads chunks, each expanded and verified as a whole before a byte of it is handed out
//	cache     the chunks read last, up to a bound
//
// A chunk that does not match its digest is an error of class piece.ErrMismatch that names file and blob. Errors of the
// reader of a blob pass through. That reader need not verify anything.
//
// It mounts nothing, starts nothing and writes nothing.
package readfs
