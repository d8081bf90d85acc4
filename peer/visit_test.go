package peer

import "testing"

func TestVisitorsTellWhereTheyCanBeAsked(t *testing.T) {
	raw := Blob{Size: 5}.ask("10.0.0.7:7702", false)
	if addr, ok := decodeVisitor(raw); !ok || addr != "10.0.0.7:7702" {
		t.Errorf("got %q, %v", addr, ok)
	}
	for _, bad := range []string{`{}`, `{"peer":"10.0.0.7"}`, `{"peer":":7702"}`, `{"peer":"a:"}`, `[`, string(Blob{Size: 5}.encode())} {
		if addr, ok := decodeVisitor([]byte(bad)); ok {
			t.Errorf("%s: took %q", bad, addr)
		}
	}
}
