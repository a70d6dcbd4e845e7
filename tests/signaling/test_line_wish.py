"""Whose offer is lined up how."""

from __future__ import annotations

import pytest

from signaling.realtime import head_start

NETWORKS = {"10.0.0.0/8": 60.0, "10.1.0.0/16": 0.0, "10.1.2.3/32": 5.0, "fd00::/8": 30.0}


@pytest.mark.parametrize(
    ("address", "seconds"),
    [
        ("10.9.9.9", 60.0),
        ("10.1.9.9", 0.0),  # the most specific network counts, not the best
        ("10.1.2.3", 5.0),
        ("11.0.0.1", 0.0),
        ("fd00::1", 30.0),
        ("fd00::1%eth0", 30.0),
        ("::ffff:10.9.9.9", 60.0),  # as a server on [::] sees an IPv4 caller
        ("::1", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_the_most_specific_network_of_an_address_counts(
    address: str | None, seconds: float
) -> None:
    assert head_start(address, NETWORKS) == seconds
    assert head_start(address, {}) == 0.0
