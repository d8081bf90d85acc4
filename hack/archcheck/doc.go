// Package archcheck keeps the shape of the tree: which package may import which, that every package says what it is
// for, and the budgets on files, functions and interfaces. It holds tests only; the rules are data in rules_test.go.
package archcheck
