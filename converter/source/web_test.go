package source

import "time"

var testTime = time.Unix(1_600_000_000, 0)
