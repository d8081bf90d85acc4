// Package keeper is a small process that holds open files for another one, which may die and come again: what would be lost with
// their last descriptor, such as a fanotify group with its marks, stays. It does not know what the files are.
//
//	Serve    the keeper: takes files under a name, gives copies of them to who asks
//	Follow   its mate, a second process that has the same files: when one of the two is killed, the other goes on and starts another
//	Connect  the other side: finds the keeper, or starts one that outlives the caller
//	Replace  starts one in the place of one that hangs, from which it takes the files as a debugger would
//
// Both talk over a Unix socket that keeps messages apart. A request is one byte and a name; files travel beside it:
//
//	P name + files   keep these, in place of what has the name
//	G name           answered by K + files, or by N when there are none
//	D name           forget them
//	I anything       answered by K and the numbers of the keeper's process and its mate's
//
// Every request is answered, P and D by K, P when the mate has the files too; E and a text tell of a fault. Only the keeper's own user and root are heard. A keeper that
// holds nothing ends when the last connection does.
package keeper
