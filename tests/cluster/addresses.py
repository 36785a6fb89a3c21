"""Where node, pods and Services are: all of IPv4, or all of IPv6.

IPv4's come from 198.18.0.0/15, the range set aside for tests, and IPv6's from a range for local use. Pods have a route
to the range and to nothing else, so nothing leaves the machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Of one family. ``firewall`` is the program that sets its rules, ``forwarding`` the kernel's switch."""

    host: str
    prefix_bits: int
    api_service: str
    range: str
    pods: str
    first_pod: str
    services: str
    firewall: str
    forwarding: str

    @property
    def api(self) -> str:
        """The API server's URL."""
        return f"https://[{self.host}]:6443" if ":" in self.host else f"https://{self.host}:6443"


FAMILIES: Final[Mapping[str, Addresses]] = {
    "ipv4": Addresses(
        host="198.18.1.1",
        prefix_bits=24,
        api_service="198.19.0.1",
        range="198.18.0.0/15",
        pods="198.18.1.0/24",
        first_pod="198.18.1.10",
        services="198.19.0.0/16",
        firewall="iptables",
        forwarding="ipv4/ip_forward",
    ),
    "ipv6": Addresses(
        host="fd74:6270:0:1::1",
        prefix_bits=64,
        api_service="fd74:6270:0:2::1",
        range="fd74:6270::/48",
        pods="fd74:6270:0:1::/64",
        first_pod="fd74:6270:0:1::10",
        services="fd74:6270:0:2::/112",
        firewall="ip6tables",
        forwarding="ipv6/conf/all/forwarding",
    ),
}
