"""Where our guard meets aioice: which datagrams a connection gets to see, and whether it lives.

As in `joint`, private names of aioice are touched here and nothing is patched globally: the
protocols (sockets) and the ICE connection of one call get other methods.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from voice_rtc.config import LimitSettings
from voice_rtc.core.rates import Bucket
from voice_rtc.media.misfit import Misfit, replace_method
from voice_rtc.metrics import Metrics

_STUN_HEADER = 20
_STUN_COOKIE = b"\x21\x12\xa4\x42"
_STUN_CLASS = 0x0110
_STUN_REQUEST = 0x0000
_STUN_INDICATION = 0x0010
_MOST_ADDRESSES = 16
"""Of one client, with all its network interfaces. aioice sends checks to each."""
_MOST_QUESTIONS = 8
"""That wait for an answer at the same time."""

Address = tuple[Any, ...]


class SocketGuard:
    """Looks at every datagram of one ICE transport before aioice does.

    aioice hands anything to DTLS, from any address: one empty datagram ends a call, and a
    ClientHello of a stranger breaks one that is being set up. As libwebrtc does, only what came
    from an address that passed an authenticated connectivity check goes on (RFC 8445 section 7),
    and connectivity checks only when they name this call.
    """

    def __init__(self, dtls: Any, limits: LimitSettings, metrics: Metrics) -> None:
        self._connection: Any = getattr(dtls.transport, "_connection", None)
        self._loop = asyncio.get_running_loop()
        self._bucket = Bucket(limits.datagrams_per_second, limits.datagrams_per_second)
        self._rtcp = Bucket(limits.rtcp_packets_per_second, 2 * limits.rtcp_packets_per_second)
        self._rejected = {
            reason: metrics.datagrams_rejected_total.labels(reason)
            for reason in ("empty", "not_stun", "stranger", "stun", "address", "rate", "rtcp")
        }
        self._username = b""
        self.on_life: Callable[[], None] = _nothing
        """Called when the client proved by its password that it is there."""
        self._questions: deque[tuple[dict[bytes, Any], bytes]] = deque()

    def shut(self) -> None:
        """Before the answer is set: what comes while the sockets are made is not kept for DTLS.

        A stranger who knows the ports could have it read before anything else. Raises Misfit.
        """
        if "data_received" not in vars(type(self._connection)):
            raise Misfit("aioice's connection has no data_received")
        rejected = self._rejected["stranger"]
        self._connection.data_received = lambda _data, _component: rejected.inc()

    def attach(self, receive_rtp: Callable[[bytes], None] | None) -> None:
        """After the answer is set. ``receive_rtp`` gets SRTP; None leaves it to aiortc.

        Raises Misfit.
        """
        protocols = getattr(self._connection, "_protocols", None)
        if not isinstance(protocols, list) or not protocols:
            raise Misfit("aioice's connection has no list of protocols")
        for name, kind in (("_check_list", list), ("_nominated", dict)):
            if not isinstance(getattr(self._connection, name, None), kind):
                raise Misfit(f"aioice's connection has no {name}")
        if not all(isinstance(getattr(each, "transactions", None), dict) for each in protocols):
            raise Misfit("aioice's protocol has no transactions")
        self._username = f"{self._connection.local_username}:".encode()
        stock = self._connection.check_incoming

        def check_incoming(message: Any, addr: Address, protocol: Any) -> None:
            """Only authenticated checks come here."""
            if self._is_one_too_many(addr):
                self._rejected["address"].inc()
                return
            stock(message, addr, protocol)
            self.on_life()

        replace_method(self._connection, "check_incoming", check_incoming)
        vars(self._connection).pop("data_received", None)
        for protocol in protocols:
            replace_method(protocol, "datagram_received", self._handler(protocol, receive_rtp))

    def ask(self) -> None:
        """Ask the client for a sign of life (RFC 7675): `on_life` follows if there is one."""
        pair = self._connection._nominated.get(1)
        if pair is None:
            return
        key = self._connection.remote_password.encode()
        request = self._connection.build_request(pair, nominate=False)
        request.add_message_integrity(key)
        transactions = pair.protocol.transactions
        if len(self._questions) >= _MOST_QUESTIONS:
            self._forget(*self._questions.popleft())
        transactions[request.transaction_id] = _Question(key, self._answered)
        self._questions.append((transactions, request.transaction_id))
        pair.protocol.send_stun(request, pair.remote_addr)

    def _answered(self) -> None:
        while self._questions:
            self._forget(*self._questions.popleft())
        self.on_life()

    @staticmethod
    def _forget(transactions: dict[bytes, Any], transaction_id: bytes) -> None:
        transactions.pop(transaction_id, None)

    def _handler(
        self, protocol: Any, receive_rtp: Callable[[bytes], None] | None
    ) -> Callable[[bytes, Address], None]:
        stock: Callable[[bytes, Address], None] = protocol.datagram_received
        known: set[Address] = set()
        rejected = self._rejected

        def datagram_received(data: bytes, addr: Address) -> None:
            if receive_rtp is not None and addr in known and _is_rtp(data):
                receive_rtp(data)  # nearly all
            elif not data:
                rejected["empty"].inc()
            elif data[0] < 4:  # RFC 7983
                if reason := self._objection(protocol, data, addr in known):
                    rejected[reason].inc()
                elif _stun_class(data) != _STUN_INDICATION:
                    stock(data, addr)
            elif addr not in known and not self._learn(protocol, addr, known):
                rejected["stranger"].inc()
            elif receive_rtp is not None and _is_rtp(data):
                receive_rtp(data)
            elif reason := self._too_often(data):
                rejected[reason].inc()
            else:
                stock(data, addr)

        return datagram_received

    def _objection(self, protocol: Any, data: bytes, from_known: bool) -> str:
        """Why a datagram that may be STUN is not to be parsed, let alone answered."""
        if (
            len(data) < _STUN_HEADER
            or data[4:8] != _STUN_COOKIE
            or len(data) != _STUN_HEADER + int.from_bytes(data[2:4], "big")
        ):
            return "not_stun"
        kind = _stun_class(data)
        if kind == _STUN_INDICATION:
            return ""  # a keep-alive of some clients; it says nothing
        if kind == _STUN_REQUEST:
            # Whoever was given the answer knows the name. A stranger gets not even an error.
            is_ours = self._username in data
        else:
            # An answer of the client may also be a late one.
            is_ours = data[8:20] in protocol.transactions or from_known
        if not is_ours:
            return "stun"
        return "" if self._bucket.take(self._loop.time()) else "rate"

    def _too_often(self, data: bytes) -> str:
        now = self._loop.time()
        if data[0] >= 128 and not self._rtcp.take(now):
            return "rtcp"
        return "" if self._bucket.take(now) else "rate"

    def _is_one_too_many(self, addr: Address) -> bool:
        """The client itself may name any source address, and checks would be sent there."""
        known = {pair.remote_addr for pair in self._connection._check_list}
        return addr not in known and len(known) >= _MOST_ADDRESSES

    def _learn(self, protocol: Any, addr: Address, known: set[Address]) -> bool:
        """Is there a pair with this address? One is made by an authenticated check alone."""
        wanted = (addr[0], addr[1])
        for pair in self._connection._check_list:
            if pair.protocol is protocol and pair.remote_addr == wanted:
                if len(known) < _MOST_ADDRESSES:
                    known.add(addr)
                return True
        return False


class _Question:
    """Stands among aioice's transactions until an answer comes."""

    def __init__(self, key: bytes, answered: Callable[[], None]) -> None:
        self._key = key
        self._on_answer = answered

    def response_received(self, message: Any, _addr: Address) -> None:
        """aioice calls this; also a refusal is a sign of life, if it is authentic."""
        if message.check_message_integrity(self._key):
            self._on_answer()


def _stun_class(data: bytes) -> int:
    return (data[0] << 8 | data[1]) & _STUN_CLASS


def _is_rtp(data: bytes) -> bool:
    """RFC 7983: 128 to 191 is RTP or RTCP; RFC 5761: their second bytes tell them apart."""
    return len(data) > 12 and 127 < data[0] < 192 and not 192 <= data[1] <= 208


def _nothing() -> None:
    """Nobody wants to know."""
