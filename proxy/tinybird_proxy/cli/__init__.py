"""The command line: ``tinybird-proxy run | check | options | emulator | demo | dead-letters | probe``."""

from tinybird_proxy.cli.main import main

__all__ = ["main"]
