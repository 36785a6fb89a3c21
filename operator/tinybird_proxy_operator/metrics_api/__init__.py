"""The process that serves ``custom.metrics.k8s.io``: what a HorizontalPodAutoscaler asks about proxies.

It needs neither Prometheus nor a database: an answer is what the pods say when somebody asks. Who asks is the API
server's word, and what they may is the API server's decision. Any number of replicas give the same answers, because
none keeps anything but the last second's.
"""
