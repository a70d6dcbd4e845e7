"""What `SocketGuard` lets through, datagram by datagram, against the pinned aioice."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aioice import Connection, stun
from aioice.candidate import Candidate
from aioice.ice import CandidatePair

from voice_rtc.config import LimitSettings
from voice_rtc.media.joint_ice import SocketGuard
from voice_rtc.media.misfit import Misfit
from voice_rtc.metrics import Metrics

HELLO = b"\x16\xfe\xff" + bytes(60)
RTCP = b"\x81\xc9\x00\x07" + bytes(28)
RTP = b"\x80\x6f" + bytes(60)
CLIENT = ("198.51.100.1", 4000)


class Rig:
    """One ICE connection with its sockets; what it sends and gets is written down."""

    def __init__(self, connection: Connection, **limits: Any) -> None:
        self.connection = connection
        self.metrics = Metrics()
        dtls = SimpleNamespace(transport=SimpleNamespace(_connection=connection))
        self.guard = SocketGuard(dtls, LimitSettings(**limits), self.metrics)
        self.signs = 0
        self.guard.on_life = self._live
        self.rtp: list[bytes] = []
        self.sent: list[tuple[stun.Message, Any]] = []
        self.protocol: Any = None

    async def attach(self) -> None:
        await self.connection.gather_candidates()
        self.protocol = self.connection._protocols[0]
        self.protocol.send_stun = lambda message, addr: self.sent.append((message, addr))
        self.guard.attach(self.rtp.append)

    def come(self, data: bytes, addr: tuple[str, int] = CLIENT) -> None:
        self.protocol.datagram_received(data, addr)

    def check(self, password: str, addr: tuple[str, int] = CLIENT, name: str = "") -> None:
        """A connectivity check comes."""
        request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        request.attributes["USERNAME"] = f"{name or self.connection.local_username}:them"
        request.attributes["PRIORITY"] = 1
        request.attributes["ICE-CONTROLLING"] = 1
        request.add_message_integrity(password.encode())
        self.come(bytes(request), addr)

    def connect(self) -> None:
        """As if ICE had nominated the client's address."""
        self.connection.remote_username = "them"
        self.connection.remote_password = "p" * 22
        candidate = Candidate("1", 1, "udp", 1, CLIENT[0], CLIENT[1], "prflx")
        pair = CandidatePair(self.protocol, candidate)
        pair.state = CandidatePair.State.SUCCEEDED
        self.connection._remote_candidates.append(candidate)
        self.connection._check_list.append(pair)
        self.connection._nominated[1] = pair
        self.connection._early_checks_done = True

    def rejected(self, reason: str) -> float:
        found = self.metrics.registry.get_sample_value(
            "voice_rtc_datagrams_rejected_total", {"reason": reason}
        )
        return found or 0.0

    @property
    def waiting(self) -> int:
        """Datagrams that DTLS would read."""
        return self.connection._queue.qsize()

    def _live(self) -> None:
        self.signs += 1


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig(Connection(ice_controlling=False, use_ipv6=False))
    await made.attach()
    yield made
    await made.connection.close()


async def test_nothing_is_kept_for_dtls_while_the_sockets_are_made() -> None:
    connection = Connection(ice_controlling=False, use_ipv6=False)
    rig = Rig(connection)
    rig.guard.shut()
    await connection.gather_candidates()
    connection._protocols[0].datagram_received(HELLO, CLIENT)
    connection._protocols[0].datagram_received(b"", CLIENT)
    assert (rig.waiting, rig.rejected("stranger")) == (0, 2)
    await rig.attach()
    rig.connect()
    rig.come(HELLO)
    assert rig.waiting == 1
    await connection.close()


async def test_only_addresses_that_passed_a_check_are_read(rig: Rig) -> None:
    rig.come(HELLO)
    rig.connect()
    rig.come(HELLO)
    rig.come(RTP)
    rig.come(HELLO, ("198.51.100.1", 4001))
    assert (rig.waiting, rig.rtp, rig.rejected("stranger")) == (1, [RTP], 2)


async def test_checks_that_do_not_name_the_call_are_not_even_answered(rig: Rig) -> None:
    rig.check("x" * 22, name="abcd!")
    request = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE)
    rig.come(bytes(request))
    rig.come(bytes(request) + b"\x00")
    assert (rig.sent, rig.rejected("stun"), rig.rejected("not_stun")) == ([], 2, 1)
    rig.check("x" * 22)
    ((answer, _),) = rig.sent
    assert answer.error_code == 401 and rig.signs == 0


async def test_an_authentic_check_is_a_sign_of_life(rig: Rig) -> None:
    rig.connect()
    rig.check(rig.connection.local_password)
    assert rig.signs == 1


async def test_a_client_cannot_have_checks_sent_to_ever_more_addresses(rig: Rig) -> None:
    rig.connect()
    for number in range(40):
        rig.check(rig.connection.local_password, ("203.0.113.1", 5000 + number))
    assert len(rig.connection._check_list) == 16
    assert rig.rejected("address") == 25


async def test_a_question_is_answered_by_whoever_has_the_password(rig: Rig) -> None:
    rig.guard.ask()
    assert rig.sent == []  # nobody is there to be asked
    rig.connect()
    rig.guard.ask()
    ((question, addr),) = rig.sent
    assert addr == CLIENT
    for password, signs in (("wrong" * 5, 0), ("p" * 22, 1), ("p" * 22, 1)):
        answer = stun.Message(
            stun.Method.BINDING, stun.Class.RESPONSE, transaction_id=question.transaction_id
        )
        answer.attributes["XOR-MAPPED-ADDRESS"] = addr
        answer.add_message_integrity(password.encode())
        rig.come(bytes(answer))
        assert rig.signs == signs
    assert rig.protocol.transactions == {}


async def test_unanswered_questions_do_not_pile_up(rig: Rig) -> None:
    rig.connect()
    for _ in range(100):
        rig.guard.ask()
    assert len(rig.protocol.transactions) == 8


async def test_rtcp_and_all_else_are_bounded_in_rate() -> None:
    connection = Connection(ice_controlling=False, use_ipv6=False)
    rig = Rig(connection, rtcp_packets_per_second=10, datagrams_per_second=100)
    await rig.attach()
    rig.connect()
    for _ in range(200):
        rig.come(RTCP)
    assert 20 <= rig.waiting <= 25
    for _ in range(200):
        rig.come(HELLO)
    assert 100 <= rig.waiting <= 120
    for _ in range(200):
        rig.come(RTP)  # which has a bound of its own, behind SRTP
    assert len(rig.rtp) == 200
    assert rig.rejected("rtcp") >= 175 and rig.rejected("rate") >= 100
    await connection.close()


@pytest.mark.parametrize("name", ["_check_list", "_nominated", "_protocols"])
async def test_a_connection_without_the_names_is_a_misfit(rig: Rig, name: str) -> None:
    kept = vars(rig.connection).pop(name)
    with pytest.raises(Misfit, match=re.escape(name.strip("_").split("_")[0])):
        rig.guard.attach(None)
    setattr(rig.connection, name, kept)
    await asyncio.sleep(0)
