"""The buffer: holds items from admission until their batch settles."""

from tinybird_proxy.buffer.memory import MemoryBuffer
from tinybird_proxy.buffer.protocol import Buffer

__all__ = ["Buffer", "MemoryBuffer"]
