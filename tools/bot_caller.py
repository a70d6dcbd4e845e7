"""The bot on the line: stock aiortc, dialling, waiting, speaking in turns, interrupting."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urljoin

import aiohttp
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.exceptions import InvalidStateError

from tools.bot_audio import Ear, HeardFrame, Mouth, News
from tools.bot_events import (
    Json,
    Received,
    in_line,
    last_response,
    pending_speech,
    positions,
    response_id,
    response_is_over,
    settled,
    status_of,
)
from tools.bot_report import BotOptions, BotReport, Turn
from voice_rtc.core.audio import Samples

_TAIL_SECONDS = 0.2
"""Listened on after a reply: its end is still in the jitter buffer and is not the next one's."""

T = TypeVar("T")


class CallFailed(Exception):
    """No call came about, or it cannot go on; ``str(error)`` says why."""


class Bot:
    """One call: `dial`, `wait_in_line`, `converse`, `hang_up`; `close` whatever happened."""

    def __init__(self, options: BotOptions) -> None:
        self.options = options
        self.report = BotReport(options.url)
        self.events: list[Received] = []
        self.turns: list[Turn] = []
        self.waits_for = ""
        """What the bot is waiting for, for the message when it waited too long."""
        self._news = News()
        self._mouth = Mouth(self._news)
        self.ear = Ear(self._news)
        # Explicit, because aiortc's default asks a public STUN server and waits for it.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._channel = self._connection.createDataChannel("oai-events")
        self._tracks: list[MediaStreamTrack] = []
        self._location = ""
        self._loop = asyncio.get_running_loop()
        self._channel.on("message", self._on_message)
        self._connection.on("track", self._on_track)
        self._connection.on("connectionstatechange", self._news.tell)

    async def dial(self, http: aiohttp.ClientSession, tasks: asyncio.TaskGroup) -> None:
        """Offer, answer, connect, listen. Raises CallFailed."""
        self._connection.addTrack(self._mouth)
        await self._connection.setLocalDescription(await self._connection.createOffer())
        began = self._loop.time()
        answer = await self._post(http, self._connection.localDescription.sdp)
        try:
            await self._connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        except ValueError as error:
            raise CallFailed(f"the server's answer cannot be used: {error}") from None
        for track in self._tracks:
            tasks.create_task(self.ear.listen(track), name="bot:listen")
        await self._until(
            "the media connection", lambda: self._connection.connectionState == "connected"
        )
        await self.event("session.created")
        self.report.setup_seconds = self._loop.time() - began
        # By its answer to this the server has also said whether the bot has to wait.
        session = {"type": "realtime", **self.options.session}
        self._send({"type": "session.update", "session": session})
        await self.event("session.updated")

    async def _post(self, http: aiohttp.ClientSession, offer: str) -> str:
        url = f"{self.options.url.rstrip('/')}/v1/realtime/calls"
        headers = {"Content-Type": "application/sdp", **self.options.headers}
        asked = f"{url}?{self.options.query}" if self.options.query else url
        try:
            async with http.post(asked, data=offer, headers=headers) as response:
                body = await response.text()
                if response.status != 201:
                    raise CallFailed(f"POST {url} was answered {response.status}: {body.strip()}")
                self._location = urljoin(url, response.headers.get("Location", ""))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CallFailed(f"cannot reach {url}: {error or 'no answer in time'}") from None
        self.report.call_id = self._location.rsplit("/", 1)[-1]
        return body

    async def wait_in_line(self) -> None:
        """Until the server listens: at once, unless it said that all slots are taken.

        Raises CallFailed when that takes longer than the bot may wait, or when the call ends.
        """
        if not in_line(self.events):
            return
        patience = self.options.wait_seconds
        try:
            async with asyncio.timeout(patience):
                await self._until("its turn in the line", lambda: not in_line(self.events))
        except TimeoutError:
            place = positions(self.events)[-1]
            raise CallFailed(f"still number {place} in line after {patience:g} s") from None

    async def converse(self) -> None:
        """All turns. Raises CallFailed when the call ends before they are over."""
        await self._until("the greeting to end", self._nothing_plays)
        await asyncio.sleep(_TAIL_SECONDS)
        options = self.options
        if options.speech is not None:
            spoken = 0
            if options.barge_in_seconds is not None:
                await self._interrupted_turn(options.speech, options.barge_in_seconds)
                spoken = 2
            for _ in range(spoken, options.turns):
                await self._spoken_turn(options.speech)
        if options.text is not None:
            await self._typed_turn(options.text)

    async def hang_up(self, http: aiohttp.ClientSession) -> None:
        """End the call at the server, if there is one; a refusal is reported."""
        if not self._location or self._call_ended():
            return
        try:
            async with http.delete(self._location, headers=self.options.headers) as response:
                if response.status != 200:
                    text = await response.text()
                    self.report.errors.append(f"hanging up was answered {response.status}: {text}")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.report.errors.append(f"hanging up failed: {error or 'no answer in time'}")

    async def packets_sent(self) -> int:
        """RTP packets so far."""
        reports = (await self._connection.getStats()).values()
        return sum(each.packetsSent for each in reports if each.type == "outbound-rtp")

    async def close(self) -> None:
        """Close the connection; listening ends with it."""
        await self._connection.close()
        for track in self._tracks:
            track.stop()

    # ------------------------------------------------------------------------ turns

    async def _spoken_turn(self, speech: Samples) -> None:
        turn = self._speak(speech)
        await self._until_settled(turn)

    async def _typed_turn(self, text: str) -> None:
        turn = Turn(len(self.events), self._loop.time(), None, text)
        self.turns.append(turn)
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "content": content}
        self._send({"type": "conversation.item.create", "item": item})
        self._send({"type": "response.create"})
        await self._until_settled(turn)

    async def _interrupted_turn(self, speech: Samples, seconds: float) -> None:
        first = self._speak(speech)
        created = await self._until("a reply", lambda: self._answer_to(first))
        response = response_id(created)
        audible = await self._until(
            "the reply to be heard",
            lambda: self._sound_since(created.at) or response_is_over(self.events, response),
        )
        if isinstance(audible, HeardFrame):
            await asyncio.sleep(audible.at + seconds - self._loop.time())
        if response_is_over(self.events, response):
            raise CallFailed(f"the reply was over before the barge-in after {seconds:g} s")
        second = self._speak(speech)
        await self._until("the interrupted reply to end", lambda: status_of(self.events, response))
        await self._until_settled(second)

    def _speak(self, speech: Samples) -> Turn:
        turn = Turn(len(self.events), self._loop.time(), self._mouth.say(speech))
        self.turns.append(turn)
        return turn

    def _answer_to(self, turn: Turn) -> Received | None:
        events = self.events[turn.first_event :]
        is_sent = turn.speaking is None or turn.speaking.sent
        return last_response(events) if is_sent and not pending_speech(events) else None

    def _sound_since(self, at: float) -> HeardFrame | None:
        newest = self.ear.frames[-1] if self.ear.frames else None
        return newest if newest is not None and newest.audible and newest.at >= at else None

    async def _until_settled(self, turn: Turn) -> None:
        def is_settled() -> bool:
            is_sent = turn.speaking is None or turn.speaking.sent
            return is_sent and settled(self.events[turn.first_event :])

        what = f"the reply to turn {self.turns.index(turn) + 1}"
        await self._until(what, is_settled)
        await asyncio.sleep(_TAIL_SECONDS)
        while not is_settled():  # noise had cancelled a reply, which the server made anew since
            await self._until(what, is_settled)
            await asyncio.sleep(_TAIL_SECONDS)

    # ---------------------------------------------------------------------- waiting

    async def _until(self, what: str, ready: Callable[[], T | None]) -> T:
        """Wait for a true result. Raises CallFailed when the call ended before it came."""
        self.waits_for = what
        while not (result := ready()):
            if self._call_ended():
                raise CallFailed(f"the call ended while waiting for {what}: {self._ending()}")
            await self._news.wait()
        return result

    async def event(self, kind: str) -> None:
        """Wait for the first event of a kind. Raises CallFailed when the call ends before it."""
        await self._until(kind, lambda: any(event.type == kind for event in self.events))

    def _nothing_plays(self) -> bool:
        created = [event for event in self.events if event.type == "response.created"]
        return all(response_is_over(self.events, response_id(event)) for event in created)

    def _call_ended(self) -> bool:
        if self._connection.connectionState in ("failed", "closed"):
            return True
        return bool(self.events) and self.events[-1].type == "voice_rtc.call.ended"

    def _ending(self) -> str:
        last = self.events[-1] if self.events else None
        if last is not None and last.type == "voice_rtc.call.ended":
            return f"{last.body.get('reason')}: {last.body.get('message', '')}"
        return f"the connection is {self._connection.connectionState}"

    # --------------------------------------------------------------------- channel

    def _send(self, event: Json) -> None:
        try:
            self._channel.send(json.dumps(event))
        except InvalidStateError:
            raise CallFailed("the data channel was closed by the server") from None

    def _on_message(self, message: str | bytes) -> None:
        body = json.loads(message)
        self.events.append(Received(self._loop.time(), body))
        if body.get("type") == "error":
            error = body.get("error", {})
            self.report.errors.append(f"{error.get('code')}: {error.get('message')}")
        self._news.tell()

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._tracks.append(track)
