// KEDA's CRDs, for the test that the API server takes our ScaledObject. To update: change the version, `go mod download`.
module tinybird-proxy.io/tests/e2e/keda

go 1.21

require github.com/kedacore/keda/v2 v2.20.2
