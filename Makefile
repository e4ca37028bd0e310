# Tidemark. `make` prints what there is.

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# How long and how often; each of the long targets says below what takes them.
FUZZTIME ?= 30s
DURATION ?= 1h
MODELCHECKS ?= 2000
HISTORIES ?= 2000
LIVES    ?= 100
SNAPSHOTS ?= 1000
CRASHSEEDS ?= 2000
CRASHROUNDS ?= 2
KILLROUNDS ?= 100
GUESTROUNDS ?= 20
BENCHFLAGS ?=
VULNDB   ?= https://vuln.go.dev
TIMEOUT  ?= 10m # of the tests of one package
TOOL     := go tool -modfile=tools/go.mod

.DEFAULT_GOAL := help
.PHONY: help build demo test lint generate fuzz model crash faults guest filesystems soak mutants vuln bench bench-memory bench-quick docs cover clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the static binary bin/tidemark
	CGO_ENABLED=0 go build -trimpath -ldflags '-X github.com/tidemark/tidemark/cli.version=$(VERSION)' -o bin/tidemark ./cmd/tidemark

demo: build ## preserve a volume under load and look at the result
	go run ./demo

test: ## everything that must pass: vet, lint, all tests with the race detector, stock NBD clients
	ci/install.sh
	ci/clients.sh
	go vet ./...
	$(MAKE) lint
	GORACE=atexit_sleep_ms=0 go test -race -timeout $(TIMEOUT) ./...

lint: ## golangci-lint with .golangci.yml
	$(TOOL) golangci-lint run ./...

generate: ## the Go code of the API, from proto/
	$(TOOL) buf generate proto --template proto/buf.gen.yaml

# The memory limit makes a decoder that asks for too much die by itself.
fuzz: ## each fuzz target for FUZZTIME
	@set -e; ulimit -v 8000000; for package in $$(go list ./...); do \
		targets=$$(go test -list '^Fuzz' $$package); \
		for target in $$(echo "$$targets" | grep '^Fuzz'); do \
			echo "$$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$package; \
		done; \
	done

model: ## against the model, and histories of concurrent clients, checked: MODELCHECKS, LIVES, SNAPSHOTS, HISTORIES
	go test -race -timeout 60m -run 'Model|Concurrent' ./volume ./store -rapid.checks $(MODELCHECKS)
	go test -race -timeout 60m -run 'AtRandom|InAnyOrder' ./store -life.seeds $(LIVES) -life.snapshots $(SNAPSHOTS)
	go test -timeout 60m -run HourlySnapshots ./store -keep.days 400
	go test -race -tags yield -timeout 60m -run 'Concurrent|History' ./volume ./store -history.rounds $(HISTORIES)

crash: ## power cuts at every step of CRASHSEEDS random workloads, and KILLROUNDS deaths of a real server
	go test -race -timeout 60m -run 'Crash|PowerCut|Kill|Death|Outlive' ./internal/vfs ./journal ./catalog ./image/sealed
	go test -timeout 120m -run 'TestAPowerCut|TestACrash' ./store -crash.rounds $(CRASHROUNDS) -crash.seeds $(CRASHSEEDS)
	go test -timeout 60m -run Kill ./e2e -e2e.rounds $(KILLROUNDS)

faults: ## each file operation fails in turn, in every way; every bit on the disk is flipped
	go test -race -timeout 60m -run Fault ./internal/vfs ./journal ./catalog ./image/file
	go test -timeout 120m -run 'Fault|Flip' ./store -faults.all -rot.bits 0

guest: build ## a Debian kernel, SQLite on ext4: GUESTROUNDS kills of the server, and power cuts of its disk
	ci/install.sh guest
	guest/run kill $(GUESTROUNDS)
	guest/run cut $(GUESTROUNDS)

filesystems: ## the tests of what lies on a disk, on XFS and btrfs over loop devices; as root
	ci/install.sh filesystems
	ci/filesystems.sh

soak: build ## everything at once for DURATION; memory, goroutines, descriptors and disk stay flat
	go run ./soak -duration $(DURATION)

mutants: ## break the code in one place at a time: does a test notice?
	go run ./mutants

vuln: ## known vulnerabilities of the code that the binary calls, where the database can be reached
	@out=$$($(TOOL) govulncheck -db $(VULNDB) ./cmd/tidemark 2>&1); code=$$?; echo "$$out"; \
	case "$$out" in *"fetching vulnerabilities"*|*"creating client"*) \
		echo "make vuln: nothing was checked: no database at $(VULNDB); VULNDB=URL names another" >&2;; \
	esac; exit $$code

bench: build ## Tidemark beside its peers: docs/benchmarks.md, in an hour and a half; BENCHFLAGS: see go run ./bench -help
	ci/install.sh bench
	go run ./bench $(BENCHFLAGS)

bench-memory: build ## the memory of a volume of 1 TiB of which every block was written, printed, in an hour and a half
	go run ./bench -sections memory -out ""

bench-quick: build ## Tidemark beside nbdkit's file plugin, in less than three minutes
	ci/install.sh bench
	go run ./bench -quick

docs: ## the documentation of every package, as text
	@for package in $$(go list ./...); do go doc -all $$package; done

cover: ## the statements that the tests reach
	go test -coverpkg ./... -coverprofile coverage.out ./...
	go tool cover -func coverage.out | tail -1

clean: ## remove what make made
	rm -rf bin coverage.out
