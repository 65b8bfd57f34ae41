# SPDX-License-Identifier: AGPL-3.0-only
"""Addresses of clients."""

from contextlib import suppress
from ipaddress import IPv6Address, IPv6Network


def network(host: str) -> str:
    """The address; for IPv6 its /64 network, in which one client has any number of addresses."""
    with suppress(ValueError):  # it is IPv4, or none
        address = IPv6Address(host)
        return str(address.ipv4_mapped or IPv6Network((address, 64), strict=False))
    return host
