"""The composition root: builds the proxy from its configuration, runs it, and stops it in order."""

from tinybird_proxy.app.exit_status import ExitStatus
from tinybird_proxy.app.run import serve

__all__ = ["ExitStatus", "serve"]
