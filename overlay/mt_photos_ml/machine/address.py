# SPDX-License-Identifier: AGPL-3.0-only
"""Addresses of clients."""

from contextlib import suppress
from ipaddress import IPv6Address, IPv6Network


def network(host: str) -> str:
    """Returns an IPv4 address as it is; for IPv6 its /64 network, because one client has all addresses in it."""
    with suppress(ValueError):  # it is IPv4, or not an address
        address = IPv6Address(host)
        return str(address.ipv4_mapped or IPv6Network((address, 64), strict=False))
    return host
