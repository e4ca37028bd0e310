// Package lazy makes what not every command needs when it is first used: the command
// line starts for each preserve, beside the clients' I/O.
package lazy

import (
	"regexp"
	"sync"
)

// Regexp compiles an expression when it is first called for; it panics then if that is
// none. Any number of goroutines may call the function.
func Regexp(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}
