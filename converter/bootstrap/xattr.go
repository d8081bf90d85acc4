package bootstrap

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
)

// xattrPrefixes are the name prefixes of the format with their index. A POSIX ACL has no name behind its prefix.
var xattrPrefixes = []struct {
	index  byte
	prefix string
}{
	{1, "user."},
	{2, "system.posix_acl_access"},
	{3, "system.posix_acl_default"},
	{4, "trusted."},
	{6, "security."},
}

// encodeXattrs returns the inline xattrs of an inode, empty if there are none. Names come in byte order.
func encodeXattrs(xattrs map[string]string) ([]byte, error) {
	if len(xattrs) == 0 {
		return nil, nil
	}
	names := make([]string, 0, len(xattrs))
	for name := range xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	out := make([]byte, xattrHeaderSize)
	for _, name := range names {
		value := xattrs[name]
		index, rest, err := splitXattr(name)
		if err != nil {
			return nil, err
		}
		if len(value) > math.MaxUint16 {
			return nil, fmt.Errorf("extended attribute %s of %d bytes: %w", name, len(value), ErrUnsupported)
		}
		out = append(out, byte(len(rest)), index)
		out = binary.LittleEndian.AppendUint16(out, uint16(len(value)))
		out = append(append(out, rest...), value...)
		out = append(out, make([]byte, -len(out)&(xattrEntrySize-1))...)
	}
	if (len(out)-xattrHeaderSize)/xattrEntrySize+1 > math.MaxUint16 {
		return nil, fmt.Errorf("extended attributes of %d bytes: %w", len(out), ErrUnsupported)
	}
	return out, nil
}

// IsXattr reports whether Linux has a kind of extended attributes the name belongs to. The others cannot be in an image.
func IsXattr(name string) bool {
	for _, p := range xattrPrefixes {
		if name == p.prefix || strings.HasSuffix(p.prefix, ".") && strings.HasPrefix(name, p.prefix) {
			return true
		}
	}
	return false
}

func splitXattr(name string) (index byte, rest string, err error) {
	for _, p := range xattrPrefixes {
		rest, ok := strings.CutPrefix(name, p.prefix)
		acl := !strings.HasSuffix(p.prefix, ".")
		if ok && acl == (rest == "") && len(rest) <= maxName && !strings.ContainsRune(rest, 0) {
			return p.index, rest, nil
		}
	}
	return 0, "", fmt.Errorf("extended attribute %q: %w", name, ErrUnsupported)
}

// decodeXattrs is the inverse of encodeXattrs; a header alone is no attribute.
func decodeXattrs(data []byte) (map[string]string, error) {
	if len(data) == 0 {
		return nil, nil
	}
	if len(data) < xattrHeaderSize {
		return nil, fmt.Errorf("extended attributes of %d bytes: %w", len(data), ErrInvalid)
	}
	if data[4] != 0 {
		return nil, fmt.Errorf("shared extended attributes: %w", ErrUnsupported)
	}
	out := map[string]string{}
	for data = data[xattrHeaderSize:]; len(data) >= xattrEntrySize; {
		nameLen, index, valueLen := int(data[0]), data[1], int(binary.LittleEndian.Uint16(data[2:]))
		size := xattrEntrySize + nameLen + valueLen
		if size > len(data) {
			return nil, fmt.Errorf("extended attribute of %d bytes where %d are left: %w", size, len(data), ErrInvalid)
		}
		name, err := joinXattr(index, string(data[xattrEntrySize:xattrEntrySize+nameLen]))
		if err != nil {
			return nil, err
		}
		if _, ok := out[name]; ok {
			return nil, fmt.Errorf("extended attribute %q twice: %w", name, ErrInvalid)
		}
		out[name] = string(data[xattrEntrySize+nameLen : size])
		data = data[min(len(data), (size+xattrEntrySize-1)&^(xattrEntrySize-1)):]
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

func joinXattr(index byte, rest string) (string, error) {
	for _, p := range xattrPrefixes {
		if p.index == index {
			name := p.prefix + rest
			if _, _, err := splitXattr(name); err != nil {
				return "", err
			}
			return name, nil
		}
	}
	return "", fmt.Errorf("extended attribute of kind %d: %w", index, ErrUnsupported)
}
