"""The network between a stock aiortc client and the server, cut and mended."""

from __future__ import annotations

import asyncio
from typing import Any

from aiortc import RTCPeerConnection


class Wire:
    """Nothing passes while ``is_cut``: as if the client had been killed, or its link had died."""

    def __init__(self, client: RTCPeerConnection) -> None:
        self.is_cut = False
        self.questions = 0
        """Connectivity and consent checks of the server so far."""
        self._asked = asyncio.Event()
        transports = {each.receiver.transport for each in client.getTransceivers()}
        if client.sctp is not None:
            transports.add(client.sctp.transport)
        for dtls in transports:
            for protocol in dtls.transport._connection._protocols:
                self._tap(protocol)

    async def asked(self, times: int) -> None:
        """Wait until the server asked so many times more."""
        wanted = self.questions + times
        while self.questions < wanted:
            await self._asked.wait()

    def _tap(self, protocol: Any) -> None:
        receive, send = protocol.datagram_received, protocol.transport.sendto

        def datagram_received(data: bytes, addr: Any) -> None:
            if data[:2] == b"\x00\x01":  # a binding request
                self.questions += 1
                self._asked.set()
                self._asked = asyncio.Event()
            if not self.is_cut:
                receive(data, addr)

        def sendto(data: bytes, addr: Any = None) -> None:
            if not self.is_cut:
                send(data, addr)

        protocol.datagram_received, protocol.transport.sendto = datagram_received, sendto
