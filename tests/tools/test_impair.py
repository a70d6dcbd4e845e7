"""The bad network: what it does is what it was told, each time, and a real call gets through it."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from tests.media.test_peer import SETTINGS, Tone
from tests.support.audio import tone
from tests.support.caller import Microphone
from tools.impair import (
    Counts,
    Dice,
    Fate,
    GilbertElliott,
    Impairment,
    Network,
    impaired,
    without_candidates,
)
from voice_rtc.core.audio import rms_dbfs
from voice_rtc.media.peer import Peer
from voice_rtc.metrics import Metrics


def fates(impairment: Impairment, count: int = 20_000, seed: str = "1") -> list[Fate]:
    dice = Dice(impairment, seed)
    return [dice.next() for _ in range(count)]


def runs_of_losses(drawn: list[Fate]) -> list[int]:
    grouped = itertools.groupby(drawn, key=lambda fate: fate.copies == 0)
    return [len(list(run)) for lost, run in grouped if lost]


def test_the_same_seed_hits_the_same_datagrams() -> None:
    bad = Impairment(loss=0.1, jitter_seconds=0.02, reorder=0.1, duplicate=0.1)
    assert fates(bad) == fates(bad)
    assert fates(bad) != fates(bad, seed="2")


@pytest.mark.parametrize("burst", [1, 3])
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.2, 1.0])
def test_as_many_are_lost_as_was_said(loss: float, burst: int) -> None:
    drawn = fates(Impairment(loss=loss, burst=burst), 60_000)
    lost = sum(not fate.copies for fate in drawn) / len(drawn)
    assert lost == pytest.approx(loss, abs=0.01 * burst * loss + 0.002)


def test_bursts_are_as_long_as_was_said() -> None:
    lengths = runs_of_losses(fates(Impairment(loss=0.05, burst=3)))
    assert len(lengths) > 200
    assert set(lengths) <= {3, 6, 9}  # now and then one begins where another ended


def test_bad_times_come_and_go() -> None:
    drawn = fates(Impairment(bad_times=GilbertElliott(enter=0.01, leave=0.25)), 60_000)
    lengths = runs_of_losses(drawn)
    # Stationary share of the bad state, and its mean length.
    assert sum(lengths) / len(drawn) == pytest.approx(0.01 / 0.26, rel=0.15)
    assert sum(lengths) / len(lengths) == pytest.approx(4.0, rel=0.15)


class Echo(asyncio.DatagramProtocol):
    """Sends everything back."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


class Sink(asyncio.DatagramProtocol):
    """Keeps everything."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.received.append(data)


END = b"\x80end of the media"
"""Looks like RTP; the last one sent."""


async def through(network: Network, count: int) -> tuple[list[int], Counts, Counts]:
    """Numbers that came back from an echo behind the relay, and what it counted there and back."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20), impaired(network) as relay:
        server, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
        address = await relay.link(server.get_extra_info("sockname"))
        client, sink = await loop.create_datagram_endpoint(Sink, remote_addr=address)
        for number in range(count):
            client.sendto(b"\x80" + bytes(11) + number.to_bytes(2, "big"))
            await asyncio.sleep(0)
        held = network.to_server
        # What waits is due before whatever is sent after this.
        await asyncio.sleep(held.delay_seconds + held.jitter_seconds + held.reorder_seconds)
        while END not in sink.received:
            client.sendto(END)  # until one of them is not lost
            await asyncio.sleep(0.01)
        client.close()
        server.close()
    numbers = [int.from_bytes(data[-2:], "big") for data in sink.received if data != END]
    return numbers, relay.to_server, relay.to_client


async def test_a_good_network_changes_nothing() -> None:
    numbers, there, _ = await through(Network(), 200)
    assert numbers == list(range(200))
    assert there.lost == there.overflowed == there.unrouted == 0


async def test_jitter_keeps_the_order_and_the_other_direction_is_left_alone() -> None:
    bad = Impairment(delay_seconds=0.02, jitter_seconds=0.02)
    numbers, _, back = await through(Network(to_server=bad), 200)
    assert numbers == list(range(200))
    assert back.lost == back.duplicated == back.reordered == 0


async def test_duplicates_and_overtaking() -> None:
    bad = Impairment(reorder=0.2, reorder_seconds=0.005, duplicate=0.2)
    numbers, there, _ = await through(Network(to_server=bad), 200)
    assert set(numbers) == set(range(200))
    assert len(numbers) > 210
    assert numbers != sorted(numbers)
    assert there.reordered > 10


async def test_a_full_queue_drops_and_counts() -> None:
    bad = Impairment(delay_seconds=0.5, most_waiting=10)
    numbers, there, _ = await through(Network(to_server=bad), 50)
    assert numbers == list(range(10))
    assert there.overflowed >= 40


async def test_a_call_through_it_loses_what_it_says() -> None:
    metrics = Metrics()
    peer = Peer(SETTINGS, Tone(), metrics)
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    microphone = Microphone()
    client.addTrack(microphone)
    network = Network(to_server=Impairment(loss=0.2, media_only=True))
    try:
        async with asyncio.timeout(30), impaired(network) as relay, asyncio.TaskGroup() as tasks:
            await client.setLocalDescription(await client.createOffer())
            answer = await peer.answer(without_candidates(client.localDescription.sdp))
            assert "a=candidate" in answer
            answer = await relay.through(answer)
            assert answer.count("a=candidate") == 1
            await client.setRemoteDescription(RTCSessionDescription(answer, "answer"))
            await peer.connected()
            inbound = tasks.create_task(peer.run_inbound())
            microphone.say(tone(4.0))
            levels = [rms_dbfs((await peer.inbound.get()).samples) for _ in range(150)]
            assert max(levels) > -20
            lost = metrics.registry.get_sample_value("voice_rtc_rtp_packets_lost_total")
            assert lost is not None and 10 <= lost <= relay.to_server.lost
            assert relay.to_client.lost == 0 and relay.to_client.sent > 20
            inbound.cancel()
    finally:
        await client.close()
        await peer.aclose()


async def test_an_answer_without_an_address_is_refused() -> None:
    async with impaired(Network()) as relay:
        with pytest.raises(LookupError, match="no IPv4 host candidate"):
            await relay.through("v=0\r\n")
