"""One destination: its queue, its attempts, its task, and how rows leave it."""

from tinybird_proxy.destination.destination import Destination
from tinybird_proxy.destination.surroundings import BatchCodec, Surroundings

__all__ = ["BatchCodec", "Destination", "Surroundings"]
