// Package fanotify holds readers of files whose bytes have not come yet, by the kernel's pre-content events (Linux 6.14 and later, on
// file systems that have them: ext4, xfs, btrfs). It knows nothing of images.
//
//	Group   what the kernel asks before it reads a marked file: Run has each range handled, then lets the reader go on
//	log     which of these questions were not answered yet, in memory that outlives the process
//
// # What the kernel does
//
// A file opened after it was marked raises events; a file descriptor from before never does, whoever uses it later. While an
// event is not answered the reader waits, and can be killed. An event is answered by the number that its file descriptor had in the process
// that read it; whoever holds the group may do so. When the last descriptor of a group is closed, all that wait go on, unanswered, and read
// what is there: zeros. So a second process has to hold the descriptors that Files returns: see package keeper.
//
// # The log
//
// Each event is read straight into a slot of the log, so that none can get lost between the kernel and the log. The slot is cleared after the
// event was answered and before its descriptor is closed. A successor finds the slots of its predecessor and has them handled too. As long as it
// has not answered one, its number must not be given to a new event, or an answer could let the wrong one go: Run holds these numbers. One that
// something else has in this process is held as soon as that is closed. Both are answered together with a new event
// that was given the number in between; if that is this process's own, the old one may be waiting for it, and fails with EIO.
package fanotify
