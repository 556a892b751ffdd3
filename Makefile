# `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
GO ?= go
BIN := bin/varve
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 20s
ROUNDS ?= 50
TXN_ROUNDS ?= $(ROUNDS)
SEEDS ?= 200
FROM ?= 1
CHAOS_ROUNDS ?= $(if $(filter command line environment,$(origin ROUNDS)),$(ROUNDS),5)

.PHONY: help build run test test-long race lint fuzz bench bench-kafka bench-cluster cluster-up cluster-down image demo interop test-franzgo test-crash chaos sim ci clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

build: ## build bin/varve
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o $(BIN) ./cmd/varve

run: build ## run a broker on embedded defaults at 127.0.0.1:9092, data in ./data (ARGS="--set name=value")
	$(BIN) dev --data-dir data $(ARGS)

cluster-up: build ## three brokers, three members of etcd and an S3 server as processes of this machine (ARGS="--free-ports")
	$(GO) build -o bin/varve-cluster ./deploy/local
	bin/varve-cluster up --varve $(BIN) $(ARGS)

cluster-down: ## end them; data and logs stay in build/cluster (ARGS="--delete-data")
	$(GO) build -o bin/varve-cluster ./deploy/local
	bin/varve-cluster down $(ARGS)

image: ## build the container image that docker-compose.yml runs
	docker build --build-arg VERSION=$(VERSION) -t varve:latest .

test: ## all tests of the tree
	$(GO) test ./...

test-long: ## the long forms: crashes and damage everywhere, a 30 s open loop, 10,000 partitions and a million commits with figures, 200 members that come and go, torn ends of logs, clocks that jump, kills at every step of tiering
	VARVE_LONG=1 $(GO) test -timeout 3h -count=1 ./tiering/... ./compaction/...
	$(GO) test -timeout 3h -count=1 ./wal -long
	VARVE_LONG=1 $(GO) test -timeout 1h -count=1 -v -run 'TestOpenLoop$$|TestManyPartitions|TestManyCommits|TestRestartsUnderLoad' ./cmd/varve/e2e
	VARVE_LONG=1 $(GO) test -tags long -timeout 3h -count=1 -v -run 'TestRebalanceStorm|TestEpochsRunOut|TestTornEnd|TestClocks|TestKilledAtEveryStep|TestAmbiguousBucket' ./cmd/varve

race: ## all tests under the race detector
	$(GO) test -race -timeout 60m ./...

lint: ## gofmt, vet, staticcheck, import graph
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofmt would change:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags long ./cmd/varve
	$(GO) tool staticcheck ./...
	$(GO) test ./internal/arch

fuzz: ## every fuzz target for FUZZTIME (20s)
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x $$pkg; done; done

bench: ## benchmarks of the components, with allocations
	$(GO) test -run '^$$' -bench . -benchmem ./...

bench-kafka: build ## Varve beside Apache Kafka, an hour, writes bench/REPORT.md (QUICK=1: ten minutes, bench/REPORT-quick.md; ARGS="-only W2")
	$(GO) run ./bench/kafka -varve $(BIN) $(if $(QUICK),-quick) $(ARGS)

bench-cluster: build ## three brokers of Varve beside three of Kafka: cost, failover, moves; 25 minutes, writes bench/REPORT-cluster.md
	$(GO) build -o bin/varve-bench ./bench/kafka
	bin/varve-bench -varve $(BIN) -cluster $(if $(QUICK),-quick) $(ARGS)

demo: build ## a real data set in, sealed to objects, replayed and compared
	$(GO) run ./demo --varve $(BIN)

interop: build ## clients and tools of others against a broker (installs them)
	$(GO) run ./interop --varve $(BIN)

test-franzgo: build ## franz-go's own integration tests (ARGS="--against cluster|kafka --kill-every 10s --records 50000 --count 10")
	$(GO) build -o bin/varve-franzgo ./interop/franzgo
	bin/varve-franzgo --varve $(BIN) $(ARGS)

test-crash: build ## kill -9 in a loop under load, and of processes that read, process and write: ROUNDS rounds of each (50)
	$(GO) run ./interop/crash --varve $(BIN) --rounds $(ROUNDS)
	$(GO) run ./interop/crash --varve $(BIN) --workload transactions --rounds $(TXN_ROUNDS)

chaos: build ## faults of all kinds on a cluster of processes, and a check of what clients were told (ROUNDS=5 SEED=n ARGS="--faults kill,cut")
	$(GO) build -o bin/varve-chaos ./interop/chaos
	bin/varve-chaos --varve $(BIN) --rounds $(CHAOS_ROUNDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

sim: ## whole clusters in one process with fake time, a seed for each: faults of all kinds, and a check of everything promised (SEEDS=200 FROM=1; SEED=n: one, with the brokers' logs)
	$(GO) test -count=1 -timeout 4h -run '^TestSeeds$$' ./broker/brokertest $(if $(SEED),-v -seed $(SEED),-seeds $(SEEDS) -from $(FROM)) $(ARGS)

ci: lint test ## what CI runs: lint, tests, short forms of what takes long
	VARVE_LONG=1 $(GO) test -count=1 -run '^TestCrashEverywhere$$' ./tiering # at every single step
	$(GO) test -count=1 -run '^TestHistories$$' ./compaction -histories 10000
	$(MAKE) sim
	$(MAKE) test-crash ROUNDS=5 TXN_ROUNDS=2
	$(MAKE) chaos ROUNDS=1 ARGS="--faults-for 30s"
	$(MAKE) interop

clean: ## remove what was built
	rm -rf bin
