package source

import (
	"testing"

	"go.uber.org/goleak"
)

// Connections that wait for the next request belong to transports, not to us.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}
