"""Find the address by which other machines reach this one."""

from __future__ import annotations

import ipaddress
import socket

from daskpipe.core.errors import ClusterError

LOOPBACK = "127.0.0.1"

PROBES = ("192.0.2.1", "2001:db8::1")
"""Addresses set aside for documentation (RFC 5737, RFC 3849): a route that leads there is the default route."""


def address_of_this_machine(site: str) -> str:
    """Return the address by which other machines reach this one.

    It is the address on the default route, or without such a route the address of the only interface. A machine
    without an address but loopback can be reached from itself alone.

    Parameters
    ----------
    site
        Name of the site whose jobs are to reach this machine, for the message.

    Raises
    ------
    ClusterError
        If there are several interfaces with an address, and no default route.
    """
    for probe in PROBES:
        if (address := address_towards(probe)) is not None:
            return address
    reachable = {
        name: addresses
        for name, addresses in interface_addresses().items()
        if addresses and not all(ipaddress.ip_address(address).is_loopback for address in addresses)
    }
    if not reachable:
        return LOOPBACK
    if len(reachable) == 1:
        return next(iter(reachable.values()))[0]
    raise ClusterError(
        f"no default route leads from this machine to others, so it is not known by which address jobs of site {site} "
        f"reach it. It has {_list_interfaces(reachable)}. Write one of them into the site's file, e.g. interface: "
        f"{next(iter(reachable))} (or interface: lo if its jobs run on this machine only)"
    )


def address_of_interface(interface: str, *, scheduler: str | None = None) -> str:
    """Return the address of a network interface: IPv4 if it has one, else IPv6.

    Parameters
    ----------
    interface
        Name of the interface, e.g. ``ib0``.
    scheduler
        Address of a scheduler, without port: an address of the same family comes first.

    Raises
    ------
    ClusterError
        If there is no such interface, or it is down or without an address.
    """
    known = interface_addresses()
    if interface not in known:
        raise ClusterError(
            f"there is no network interface {interface!r} on {socket.gethostname()} that is up. It has "
            f"{_list_interfaces(known)}. Change interface in the site's file"
        )
    if not known[interface]:
        raise ClusterError(
            f"network interface {interface!r} of {socket.gethostname()} has no address by which other machines reach "
            f"it. There are {_list_interfaces(known)}. Change interface in the site's file"
        )
    is_v6 = scheduler is not None and ":" in scheduler
    return sorted(known[interface], key=lambda address: (":" in address) != is_v6)[0]


def address_towards(host: str) -> str | None:
    """Return the address of this machine from which it would reach another; None if no route leads there.

    No packet is sent: to connect a datagram socket only looks up the route.
    """
    try:
        targets = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, protocol, _, target in targets:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return None


def interface_addresses() -> dict[str, list[str]]:
    """Return the addresses of each network interface that is up, IPv4 first, without link-local ones."""
    import psutil

    states = psutil.net_if_stats()
    usable = {}
    for name, items in psutil.net_if_addrs().items():
        # An alias, such as eth0:1, is up if its interface is.
        state = states.get(name) or states.get(name.partition(":")[0])
        if state is not None and not state.isup:
            continue
        addresses = [item.address for item in items if item.family in (socket.AF_INET, socket.AF_INET6)]
        routed = [address for address in addresses if not ipaddress.ip_address(address.partition("%")[0]).is_link_local]
        usable[name] = sorted(routed, key=lambda address: ":" in address)
    return usable


def bracket_address(address: str) -> str:
    """Return an address as it stands before a port: an IPv6 address in brackets.

    Examples
    --------
    >>> bracket_address("::1"), bracket_address("127.0.0.1")
    ('[::1]', '127.0.0.1')
    """
    return f"[{address}]" if ":" in address else address


def _list_interfaces(interfaces: dict[str, list[str]]) -> str:
    return ", ".join(f"{name} ({', '.join(addresses) or 'no address'})" for name, addresses in interfaces.items())
