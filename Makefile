# make alone prints this file's targets. CI runs .ci/run, which calls "make lint test" and has no logic of its own.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

SHOAL_CACHE ?= $(HOME)/.cache/shoal
export SHOAL_CACHE
# Tools of the pinned versions come before the distribution's.
export PATH := $(SHOAL_CACHE)/bin:$(PATH)

VERSION := $(shell git describe --always --dirty --tags 2>/dev/null || echo devel)
LDFLAGS := -X main.version=$(VERSION)
FUZZTIME ?= 10s
FUZZ ?= .
BENCH ?= .
COUNT ?= 10
RUNS ?= 100
FIRST ?= 1
BENCH_SIZE ?= 4GiB
BENCH_FLAGS ?=
BATTERY_FLAGS ?=
SIM_FLAGS ?=
SWARM_FLAGS ?=
FIRST_FLAGS ?=
FILL_FLAGS ?=
SCRIPTS := hack/setup hack/base-image hack/model hack/fuzz .ci/run

.PHONY: help
help: ## print the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/shoal, its version stamped from git
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/shoal ./cmd/shoal

.PHONY: image
image: ## build dist/shoal-image, shoal's container image as an OCI layout; IMAGE=REGISTRY/NAME:TAG pushes it too
	go run ./hack/shoalimage --version '$(VERSION)' --output dist/shoal-image $(if $(IMAGE),--push '$(IMAGE)')

.PHONY: setup
setup: ## install and build all tools, once (see hack/setup --help)
	hack/setup all

.PHONY: test
test: ## set up, then run all tests, the end-to-end ones too, and every fuzz target shortly; needs root
	hack/setup test
	REQUIRE_TOOLS=1 go test -count=1 -timeout 30m ./...
	hack/fuzz 2s

.PHONY: race
race: ## run the tests of the libraries under the race detector
	go test -race -count=1 -short -timeout 30m ./...

.PHONY: e2e
e2e: ## set up, then run the end-to-end tests only, aloud
	hack/setup test
	REQUIRE_TOOLS=1 go test -count=1 -timeout 30m -v ./hack/lab/...

.PHONY: e2e-lazy
e2e-lazy: ## set up, then run the end-to-end tests of images that are mounted, with real containerds, aloud
	hack/setup demo containerds
	REQUIRE_TOOLS=1 go test -count=1 -timeout 30m ./snapshotter/...
	REQUIRE_TOOLS=1 go test -count=1 -timeout 30m -v ./hack/lab \
		-run "^($$(sed -n 's/^func \(TestRoot[A-Za-z]*\)(.*/\1/p' hack/lab/lazy*_test.go | paste -sd '|'))$$"

.PHONY: e2e-interop
e2e-interop: ## run one image by shoal's snapshotter, nydus-snapshotter and nydusd, which share; builds nydus-snapshotter once, some minutes
	hack/setup demo nydus-snapshotter
	go run ./hack/lab interop

.PHONY: e2e-containerd
e2e-containerd: ## pull with four containerds while something goes wrong behind or in the mirror; BATTERY_FLAGS
	hack/setup demo containerds
	go run ./hack/lab containerd $(BATTERY_FLAGS)

.PHONY: e2e-kubelet
e2e-kubelet: ## run pods by two real kubelets whose images come through the mirror; builds the kubelet once, some minutes
	hack/setup demo kubelet
	go run ./hack/lab kubelet
	go run ./hack/lab kubelet --snapshotter

.PHONY: chaos
chaos: ## read through RUNS (100) swarms to which random things happen; FIRST (1) is the seed of the first
	hack/setup demo
	go run ./hack/lab chaos --runs $(RUNS) --first $(FIRST) --json

.PHONY: fmt
fmt: ## format the code
	hack/setup lint
	golangci-lint fmt

.PHONY: vet
vet: ## run go vet
	go vet ./...

.PHONY: lint
lint: ## run all linters: golangci-lint, go fix, shellcheck
	hack/setup lint
	golangci-lint fmt --diff
	golangci-lint run
	go fix -diff ./...
	if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); else echo 'lint: no shellcheck, scripts unchecked; run hack/setup packages' >&2; fi

.PHONY: check
check: fmt vet lint test ## fmt, vet, lint, test: what a change has to pass

.PHONY: fuzz
fuzz: ## run the fuzz targets that match FUZZ, each for FUZZTIME (10s)
	hack/fuzz '$(FUZZTIME)' '$(FUZZ)'

.PHONY: fuzz-short
fuzz-short: ## run every fuzz target for 2 s, as make test does
	hack/fuzz 2s

.PHONY: bench
bench: ## run the Go benchmarks that match BENCH, COUNT times (for benchstat), then the lab's broadcast
	go test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) ./...
	hack/setup test
	go run ./hack/lab broadcast --peers 8 --size 256MiB --link 200mbit --json

.PHONY: bench-convert
bench-convert: build ## measure shoal convert beside sha256sum, nydus-image, umoci and crane on a model of BENCH_SIZE (4GiB)
	hack/setup packages nydus bench
	go run ./hack/convertbench --shoal bin/shoal --size $(BENCH_SIZE) --rounds 3 $(BENCH_FLAGS)

.PHONY: bench-mirror
bench-mirror: ## measure pulls through the mirror beside those from the registry, and a held blob beside nginx
	hack/setup demo
	go run ./hack/lab mirror $(BENCH_FLAGS)

.PHONY: bench-swarm
bench-swarm: ## bring blobs to peers, by turns straight from the registry and through Shoal; figures and plot to docs/; SWARM_FLAGS
	hack/setup demo
	go run ./hack/lab swarm --plot docs/bench-swarm.svg --json docs/bench-swarm.json $(SWARM_FLAGS)

.PHONY: bench-lazy
bench-lazy: ## measure how long containers take until they have read a model: pulled, by nydusd, by the snapshotter; figures and plot to docs/; LAZY_FLAGS
	hack/setup demo
	go run ./hack/lab lazy --plot docs/bench-lazy.svg --json docs/bench-lazy.json $(LAZY_FLAGS)

.PHONY: bench-fill
bench-fill: ## measure the first read of a mounted model beside nydusd, and reads of the complete one beside plain files; FILL_FLAGS
	hack/setup demo
	go run ./hack/lab fill $(FILL_FLAGS)

.PHONY: bench-first
bench-first: ## measure small blobs, first bytes and ranges beside the registry's own answers; FIRST_FLAGS
	hack/setup demo
	go run ./hack/lab first $(FIRST_FLAGS)

.PHONY: sim
sim: ## simulate a broadcast over the real scheduler and planner, in every scenario; SIM_FLAGS, see go run ./hack/sim -h
	go run ./hack/sim $(SIM_FLAGS)

.PHONY: demo
demo: ## one model to three nodes, start to end; KEEP=1 leaves it running; needs root
	hack/setup demo
	go build -o bin/lab ./hack/lab
	exec bin/lab demo $(if $(KEEP),--keep)

.PHONY: clean
clean: ## remove what was built here and what killed lab runs and kept demos left; the cache stays
	rm -rf bin dist
	if [[ $$(id -u) == 0 && -d hack/lab ]]; then go run ./hack/lab clean; fi
