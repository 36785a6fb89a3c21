"""The public port: events in, everything else passed through or refused."""
