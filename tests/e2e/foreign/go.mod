// Where the CRDs of other projects come from, for tests in which the API server takes our objects of their kinds.
// To update: change a version, then `go mod download -json` of that module with GOFLAGS=-mod=mod.
module tinybird-proxy.io/tests/e2e/foreign

go 1.21

require (
	github.com/kedacore/keda/v2 v2.20.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
