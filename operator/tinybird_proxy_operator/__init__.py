"""The Kubernetes operator for tinybird-proxy."""
