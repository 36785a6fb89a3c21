"""What a process needs that the API server connects to: its own CA, certificates with an overlap, bounded connections.

The metrics API and the webhook share it. Who registers the CA, and where, is theirs.
"""
