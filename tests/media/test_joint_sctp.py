"""The bounds of one SCTP association, chunk by chunk, against the pinned aiortc."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from aiortc import rtcsctptransport
from aiortc.rtcsctptransport import (
    SCTP_DATA_FIRST_FRAG,
    SCTP_DATA_LAST_FRAG,
    SCTP_DATA_UNORDERED,
    WEBRTC_STRING,
    DataChunk,
    ForwardTsnChunk,
    RTCSctpTransport,
)

from voice_rtc.config import LimitSettings
from voice_rtc.media.joint_sctp import AssociationGuard
from voice_rtc.media.misfit import Misfit

WHOLE = SCTP_DATA_FIRST_FRAG | SCTP_DATA_LAST_FRAG


class Rig:
    """An association that receives what a test makes up."""

    def __init__(self) -> None:
        dtls = SimpleNamespace(state="connected")
        self.sctp = RTCSctpTransport(dtls)  # type: ignore[arg-type]  # nothing is sent
        self.sctp._last_received_tsn = 0
        self.reasons: list[str] = []
        self.guard = AssociationGuard(self.sctp, LimitSettings(), self.reasons.append)
        self.guard.attach()
        self.tsn = 0

    async def receive(
        self, data: bytes, *, flags: int, stream: int = 0, order: int = 0, skip: int = 0
    ) -> None:
        self.tsn += 1 + skip
        chunk = DataChunk(flags)
        chunk.tsn, chunk.stream_id, chunk.stream_seq = self.tsn, stream, order
        chunk.protocol, chunk.user_data = WEBRTC_STRING, data
        await self.sctp._receive_data_chunk(chunk)

    @property
    def held(self) -> int:
        streams = self.sctp._inbound_streams.values()
        return sum(len(chunk.user_data) for each in streams for chunk in each.reassembly)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    yield Rig()


async def test_a_message_without_end_is_not_kept(rig: Rig) -> None:
    await rig.receive(bytes(1000), flags=SCTP_DATA_FIRST_FRAG)
    most = 0
    for _ in range(12_000):
        await rig.receive(bytes(1000), flags=0)
        most = max(most, rig.held)
    assert rig.reasons == ["channel_bytes"]
    assert most <= 131_072 and rig.held == 0


async def test_unfinished_messages_on_many_streams_count_together(rig: Rig) -> None:
    for number in range(400):
        await rig.receive(bytes(1000), flags=SCTP_DATA_FIRST_FRAG, stream=number % 60)
    assert rig.reasons == ["channel_bytes"]


async def test_streams_are_counted(rig: Rig) -> None:
    for number in range(65):
        await rig.receive(b"x", flags=WHOLE, stream=number)
    assert rig.reasons == ["channel_streams"]


async def test_streams_that_are_only_skipped_are_counted(rig: Rig) -> None:
    chunk = ForwardTsnChunk()
    chunk.cumulative_tsn = 1
    chunk.streams = [(number, 0) for number in range(65)]
    await rig.sctp._receive_forward_tsn_chunk(chunk)
    assert rig.reasons == ["channel_streams"]


async def test_crumbs_are_counted(rig: Rig) -> None:
    await rig.receive(b"x", flags=SCTP_DATA_FIRST_FRAG)
    for _ in range(1100):
        await rig.receive(b"x", flags=0)
    assert rig.reasons == ["channel_fragments"]


async def test_gaps_are_counted(rig: Rig) -> None:
    for _ in range(1100):
        await rig.receive(b"x", flags=WHOLE | SCTP_DATA_UNORDERED, skip=1)
    assert rig.reasons == ["channel_fragments"]


async def test_what_is_not_text_does_not_break_the_receive_loop(rig: Rig) -> None:
    rig.sctp._data_channels[0] = SimpleNamespace(emit=lambda *_: None)  # type: ignore[assignment]
    await rig.receive(b"\xff\xfe", flags=WHOLE)
    assert rig.reasons == ["channel_malformed"]


async def test_honest_messages_pass(rig: Rig) -> None:
    for number in range(2000):
        await rig.receive(b"x" * 1000, flags=SCTP_DATA_FIRST_FRAG, order=number)
        for _ in range(14):
            await rig.receive(b"x" * 1000, flags=0, order=number)
        await rig.receive(b"x" * 1000, flags=SCTP_DATA_LAST_FRAG, order=number)
    assert rig.reasons == [] and rig.held == 0


async def test_an_association_without_the_names_is_a_misfit(rig: Rig) -> None:
    del rig.sctp._sack_misordered
    with pytest.raises(Misfit, match="_sack_misordered"):
        AssociationGuard(rig.sctp, LimitSettings(), rig.reasons.append).attach()


def test_packets_fit_a_path_of_1280_bytes() -> None:
    ip, udp, dtls = 40, 8, 13 + 8 + 16
    assert rtcsctptransport.SCTP_MAX_PACKET_LENGTH + dtls + udp + ip <= 1280
