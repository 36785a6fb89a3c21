"""One destination at work: its queue of batches, its attempts, and what follows from each."""

from tinybird_proxy.destination.destination import Destination, Refusing
from tinybird_proxy.destination.surroundings import Surroundings

__all__ = ["Destination", "Refusing", "Surroundings"]
