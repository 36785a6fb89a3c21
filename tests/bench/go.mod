module tinybird-proxy.invalid/bench

go 1.22
