"""Logs, metrics and traces: every name that leaves the process is written here, once."""
