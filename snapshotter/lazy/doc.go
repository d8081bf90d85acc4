// Package lazy mounts images before their bytes are there, so that the kernel reads them at its own speed: its EROFS over plain files, which
// are filled as they are read and as the whole image is fetched behind.
//
//	Driver    mounts and unmounts; Run answers the kernel
//	device    one blob as the kernel reads it: the peer's own file (shared), or a file with its chunks expanded (expanded)
//	serve     a read: whose file is it, have the range brought, let the reader go on
//	plan      what is fetched ahead, in which order
//	record    what the next process has to know
//	shelf     the files of expanded blobs: who has which, and what they count
//	places    which file has which bytes, for what is read and what fails
//	access    which files were read in which order, for the prefetch table of the image's next version
//
// # The life of a read
//
// Mount opens each blob at the peer, marks its file for pre-content events (package fanotify), and only then has the kernel mount it: a file
// that was opened before the mark would raise none. A reader that needs bytes from the device makes the kernel ask for that range, at
// most Config.Readahead at once, before it reads the file. The driver waits at the peer for exactly that range, as a reader of its own, which
// overtakes all prefetch, and answers when the range is in the file and verified. Many ask at once, each in a goroutine; who asks for the
// same waits for the same pieces. When all of a device is there and verified the mark is removed, and it is a plain file. An image of
// which nothing is missing any more is mounted anew, past the page cache, in the place of the mount that was filled: its bytes are in memory once.
// Who has files of the old one open goes on with that.
//
// A blob whose chunks lie on the device as they do in the blob, as in an aligned layer tar, is mounted as the peer stores it, and
// takes no second copy. Any other gets a sparse file of the driver's own, where each chunk is written after it was expanded and had the
// digest that the bootstrap says. The file is named after all that the image says of the blob, so that what one image claims decides nothing for another.
//
// A range that nobody has fails that read with EIO, after a second try, with a line in the log that names image, file and offset. All else
// goes on.
//
// # When this process dies
//
// The keeper (package keeper) holds the group with the marks, and the log of questions that were not answered. Readers wait. The next process
// takes both over, and answers what was left when Mount has claimed the files again. Of an event whose file its reader did not
// live to note, the range is brought for every device that misses something.
//
// Keepers come in pairs, of which one that is killed is replaced by the other, and both by this process. Only when all three are gone at
// once the kernel asks nobody any more, and who reads what has not come gets zeros: nothing in the kernel turns that into an error. The next Mount sees that the
// record names another group. It marks the files anew, which holds the readers of old mounts too from then on, has the kernel forget what it has
// read of them, mounts afresh for those who come later, and says in the log that the containers of that time have to be restarted.
//
// A process that mounts nothing where an earlier one did calls Abandon: it takes the group over and has those reads fail, until nothing is mounted
// anywhere. A mark goes only when its device is complete or nothing that has it is mounted. So records tell of mounts until they are gone everywhere,
// not only at their targets.
//
// After a restart the devices that were complete stay unmarked; the others are verified again as they are read, and as a whole when they are fetched.
//
// # What it does not do
//
// It does not pin blobs: who calls Mount has to, so that a store that is opened again does not evict what is still mounted. A piece that goes bad on the disk after its device was complete is read as it is, like any file. And the
// driver's own process must not read files through its mounts, since its reads are let through at once.
package lazy
