"""The process that puts sidecars into pods that ask: a mutating admission webhook for the creation of pods.

It decides nothing: the operator has rendered the sidecar, and ``sidecars.injection`` says where it goes. Any number of
replicas give the same answers, because none keeps anything.
"""
