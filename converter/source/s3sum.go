package source

import (
	"crypto/md5"  // what stores promise
	"crypto/sha1" // see above
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// crc64NVME is the polynomial of the NVMe command set, low bit first.
const crc64NVME = 0x9a6c9329ac4bc9b5

// objectSums are what a store promises about a whole object, the best first kind only. What it promises about parts is of no
// use here. Without any, the ETag is the md5 of an object that was put in one piece, unless the store encrypts with keys.
func objectSums(out *s3.GetObjectOutput) []checksum {
	tag := strings.Trim(aws.ToString(out.ETag), `"`)
	inParts := strings.Contains(tag, "-")
	if out.ChecksumType == types.ChecksumTypeFullObject || out.ChecksumType == "" && !inParts {
		for _, c := range []struct {
			kind  string
			value *string
			hash  func() hash.Hash
		}{
			{"sha256", out.ChecksumSHA256, sha256.New},
			{"sha1", out.ChecksumSHA1, sha1.New},
			{"crc64nvme", out.ChecksumCRC64NVME, func() hash.Hash { return crc64.New(crc64.MakeTable(crc64NVME)) }},
			{"crc32c", out.ChecksumCRC32C, func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }},
			{"crc32", out.ChecksumCRC32, func() hash.Hash { return crc32.NewIEEE() }},
		} {
			want, err := base64.StdEncoding.DecodeString(aws.ToString(c.value))
			if h := c.hash(); err == nil && len(want) == h.Size() {
				return []checksum{{c.kind, h, want}}
			}
		}
	}
	keyed := out.SSECustomerAlgorithm != nil || out.ServerSideEncryption != "" && out.ServerSideEncryption != types.ServerSideEncryptionAes256
	if want, err := hex.DecodeString(tag); err == nil && len(want) == md5.Size && !keyed {
		return []checksum{{"md5", md5.New(), want}} // see above
	}
	return nil
}
