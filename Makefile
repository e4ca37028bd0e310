# Tidemark. `make` prints what there is.

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME ?= 30s
CRASHROUNDS ?= 20
KILLROUNDS ?= 100
MODELCHECKS ?= 2000
TIMEOUT  ?= 10m # of the tests of one package
TOOL     := go tool -modfile=tools/go.mod

.DEFAULT_GOAL := help
.PHONY: help build demo test lint generate fuzz crash model bench docs cover clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the static binary bin/tidemark
	CGO_ENABLED=0 go build -trimpath -ldflags '-X github.com/tidemark/tidemark/cli.version=$(VERSION)' -o bin/tidemark ./cmd/tidemark

demo: build ## preserve a volume under load and look at the result
	go run ./demo

test: ## everything that must pass: vet, lint, all tests with the race detector, stock NBD clients
	ci/install.sh
	go vet ./...
	$(MAKE) lint
	go test -race -timeout $(TIMEOUT) ./...

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

crash: ## the tests of power cuts and deaths, many times over
	go test -race -timeout 60m -run 'Crash|PowerCut|Kill|Death|Outlive' ./internal/vfs ./journal ./catalog
	go test -race -timeout 60m -run TestAPowerCut ./store -crash.rounds $(CRASHROUNDS)
	go test -timeout 60m -run Kill ./e2e -e2e.rounds $(KILLROUNDS)

model: ## the tests against the model and of concurrent histories, many times over
	go test -race -timeout 60m -run 'Model|Concurrent' ./volume ./store -rapid.checks $(MODELCHECKS)

bench: build ## Tidemark beside nbdkit, and preserves beside a command that does nothing
	ci/install.sh
	bench/compare.sh
	bench/stalls.sh

docs: ## the documentation of every package, as text
	@for package in $$(go list ./...); do go doc -all $$package; done

cover: ## the statements that the tests reach
	go test -coverpkg ./... -coverprofile coverage.out ./...
	go tool cover -func coverage.out | tail -1

clean: ## remove what make made
	rm -rf bin coverage.out
