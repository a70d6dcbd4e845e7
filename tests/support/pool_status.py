"""A busy server as GET /pool tells it, with figures that change and no engine behind them.

`ScriptedServer` is what `signaling.pool_view.CallsAndPool` asks for: 24 slots of which 18 are
leased and 6 out of service with their replica, a line of 7, two alerts, an hour of history.
Everything follows from ``at``, the seconds since its beginning, and from the actions that it was
given, which it carries out as far as that can be seen from outside. `PoolRig` serves the page and
its API over one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiohttp import web

import web as pages
from signaling import admin
from signaling.app import errors_as_json
from signaling.pool_view import Json, PoolFeed, PoolView, Readiness
from voice_rtc.call.events import TurnMeasured
from voice_rtc.call.state import CallState
from voice_rtc.config import AdminSettings
from voice_rtc.core.latency import RecentTurns, TurnTimes
from voice_rtc.errors import StateError, UnknownCall, VoiceRtcError

TOKEN = "open sesame"
STEP_SECONDS = 5.0
POINTS = 720
LADDER = ("normal", "partials_slower", "no_partials", "economy", "queue_only", "refuse")
_FLOORS = ("USER", "AGENT", "THINKING", "IDLE", "PAUSE", "AGENT", "USER", "OVERLAP")

_EVENTS = (
    (312.0, "replica shared-2 quarantined: out of GPU memory three times in two minutes"),
    (314.5, "replica shared-2 replaced: CUDA out of memory"),
    (401.2, "replica shared-2 replaced: CUDA out of memory"),
    (422.0, "ladder 1 -> 0: normal"),
    (431.8, "replica shared-2 replaced: silent for 0.9 s"),
    (517.0, "ladder 0 -> 1: partials_slower (final transcripts took 0.71 s)"),
    (3_301.0, "slots 16 -> 24: measured by the probe"),
)
"""Seconds before the beginning, and what happened."""


def _gpu(index: int, used_mb: int) -> Json:
    total = 81_559
    return {
        "index": index,
        "name": "NVIDIA H100 80GB HBM3",
        "total_mb": total,
        "used_mb": used_mb,
        "free_mb": total - used_mb,
        "mig": False,
    }


def call_id(number: int) -> str:
    """A call's id, as long as real ones."""
    return f"rtc_{number * 2654435761 % 2**32:08x}{number:012x}"


@dataclass
class ScriptedPool:
    """The pool's part; see the module."""

    server: ScriptedServer

    def status(self) -> Json:
        """Everything but the history."""
        server, at = self.server, self.server.at
        states = server.snapshot()
        held = [state for state in states if state.lease_id is not None]
        total = server.slots or (18 if server.is_troubled else 24)
        final_p95 = round(0.41 + 0.09 * math.sin(at / 7), 3)
        return {
            "mode": server.mode,
            "rollout": {"mode": "dedicated", "share": 0.1},
            "fallback": None,
            "admission": {"state": "queue_only", "reason": "memory is high"}
            if server.step >= 4
            else {"state": "open", "reason": ""},
            "ladder": {
                "step": server.step,
                "name": LADDER[server.step],
                "reason": "final transcripts took 0.71 s (95th percentile), the goal is 0.60 s"
                if server.step
                else "",
                "since_seconds": 95.0 + at,
                "names": list(LADDER),
            },
            "slots": {
                "total": total,
                "leased": len(held),
                "free": max(0, total - len(held)),
                "target": server.slots or 24,
                "max": 32,
            },
            "sizing": self._sizing(),
            "line": self._line([state for state in states if state.phase == "waiting"]),
            "leases": [
                {
                    "id": state.lease_id,
                    "call": state.id,
                    "slot": slot,
                    "replica": server.isolated.get(state.id, "shared-1"),
                    "mode": server.mode,
                    "held_seconds": round(state.age_seconds - 0.4, 1),
                    "utterances": state.turns + 1,
                    "replays": 1 if slot % 7 == 3 else 0,
                    "audio_kb": 12.0 * (slot % 9),
                }
                for slot, state in enumerate(held, start=1)
            ],
            "replicas": self._replicas(len(held)),
            "latency": {
                "final_p50_seconds": 0.212,
                "final_p95_seconds": final_p95,
                "partial_p95_seconds": 0.33,
                "finals_per_minute": 132.0,
            },
            "machine": {
                "cpu_percent": round(46 + 12 * math.sin(at / 5), 1),
                "cores": 16,
                "rss_mb": 412.0,
                "workers_rss_mb": 5_830.0,
                "memory_total_mb": 128_000.0,
                "memory_available_mb": 97_300.0,
                "memory_pressure": "normal",
                "threads": 61,
                "tasks": 311,
                "loop_lag_ms": 1.8,
                "server_cores": 0.31,
            },
            "alerts": self._alerts() if server.is_troubled else [],
            "events": [{"age_seconds": age + at, "text": text} for age, text in server.events],
        }

    def _sizing(self) -> Json:
        server = self.server
        return {
            "source": "settings" if server.slots else "probe",
            "explanation": "Measured: 24 callers get their final transcripts within 0.60 s "
            "(18 and 6 by free memory of the GPUs); 32 would need 0.83 s.",
            "goal_seconds": 0.6,
            "gpus": [
                _gpu(0, round(61_204 + 40 * math.sin(server.at))),
                _gpu(1, 79_402),
            ]
            if server.has_gpu
            else [],
            "gpu_problem": "" if server.has_gpu else "There is no NVIDIA driver.",
        }

    def _line(self, waiting: list[CallState]) -> Json:
        return {
            "waiting": len(waiting),
            "max_waiting": 100,
            "longest_wait_seconds": waiting[0].age_seconds if waiting else 0.0,
            "entries": [
                {
                    "call": state.id,
                    "position": position,
                    "waited_seconds": state.age_seconds,
                    "eta_seconds": 14.0 * position if position < 6 else None,
                    "mode": self.server.mode,
                    "present": position != 3,
                }
                for position, state in enumerate(waiting, start=1)
            ],
        }

    def _alerts(self) -> list[Json]:
        at = self.server.at
        return [
            {
                "name": "replica_flapping",
                "severity": "critical",
                "text": "Replica shared-2 is in quarantine: out of GPU memory three times.",
                "since_seconds": 312.0 + at,
            },
            {
                "name": "line_long",
                "severity": "warning",
                "text": f"The first caller in the line has waited {98 + at:.0f} s.",
                "since_seconds": 41.0 + at,
            },
        ]

    def _replicas(self, leases: int) -> list[Json]:
        server, at = self.server, self.server.at
        healthy: Json = {
            "name": "shared-1",
            "mode": "shared",
            "role": "serving",
            "engine": "faster-whisper",
            "model": "large-v3-turbo (cuda float16)",
            "device": 0,
            "state": "starting" if "shared-1" in server.replaced else "ready",
            "pids": [41_227],
            "leases": leases,
            "slots": 18,
            "busy_seconds": 0.08,
            "silent_seconds": 0.04,
            "probe_seconds": 0.061,
            "probe_age_seconds": round(4 + at % 26, 1),
            "failures": 0,
            "age_seconds": 3_310.0 + at,
            "rss_mb": 2_912.0,
            "batch_mean": 4.6,
            "reason": "",
        }
        sick = {
            **healthy,
            "name": "shared-2",
            "device": 1,
            "state": "starting" if "shared-2" in server.replaced else "quarantined",
            "pids": [],
            "leases": 0,
            "slots": 6,
            "busy_seconds": 0.0,
            "silent_seconds": 312.0 + at,
            "probe_seconds": None,
            "probe_age_seconds": None,
            "failures": 3,
            "age_seconds": 314.0 + at,
            "rss_mb": 0.0,
            "batch_mean": 0.0,
            "reason": "out of GPU memory three times in two minutes",
        }
        spare = {**healthy, "name": "shared-3", "role": "spare",
            "state": "ready", "leases": 0, "slots": 0,
                 "pids": [41_530], "batch_mean": 0.0, "age_seconds": 310.0 + at}  # fmt: skip
        return [healthy, sick, spare] if server.is_troubled else [healthy]

    def history(self) -> Json:
        """The last hour."""
        newest = math.floor(self.server.at / STEP_SECONDS)
        points = [self._point(number) for number in range(newest - POINTS + 1, newest + 1)]
        series = {name: [point[name] for point in points] for name in points[0]}
        return {"step_seconds": STEP_SECONDS, "series": series}

    def newest_point(self) -> Json:
        """The newest point of the history."""
        return self._point(math.floor(self.server.at / STEP_SECONDS))

    def _point(self, number: int) -> Json:
        """Noon's rush: it fills, a line forms, quality is given up for a while, it calms down."""
        x = number / POINTS + 1  # 0 an hour ago, 1 now
        wish = 7 + 19 * math.exp(-(((x - 0.84) / 0.2) ** 2)) + 5 * math.sin(23 * x) * x
        slots = 16 if x < 0.08 else 24 if x < 0.91 or not self.server.is_troubled else 18
        p95 = 230 + 16 * wish + 25 * math.sin(number / 3) + (210 if 0.84 < x < 0.86 else 0)
        unknown = 0.3 < x < 0.33  # nobody spoke
        return {
            "at": round(self.server.born_unix + number * STEP_SECONDS, 1),
            "leased": min(round(wish), slots) if x < 0.91 else self.server.leased,
            "waiting": max(0, round(wish - slots))
            if x < 0.91
            else min(self.server.queued, round(200 * (x - 0.91))),
            "slots": slots,
            "final_p95_ms": None if unknown else round(p95 * (0.62 if x > 0.9 else 1), 1),
            "cpu_percent": round(14 + 1.7 * wish + 4 * math.sin(number / 2), 1),
            "rss_mb": round(5_600 + 22 * wish, 1),
            "gpu_used_mb": (61_204.0 if x > 0.08 else 48_000.0) if self.server.has_gpu else None,
            "ladder": 1 if 0.85 < x < 0.88 else 0,
        }

    async def quarantine(self, replica: str) -> str:
        """Noted."""
        return self._replaced("quarantine", replica)

    async def restart(self, replica: str) -> str:
        """The replica is starting from now on."""
        return self._replaced("restart", replica)

    def _replaced(self, action: str, replica: str) -> str:
        self.server.done.append((action, replica))
        if replica not in {each["name"] for each in self._replicas(0)}:
            raise UnknownCall(f"no replica is named {replica}", code="replica_not_found")
        self.server.replaced.add(replica)
        return f"{replica} is being replaced; its calls go on."

    async def resize(self, slots: int) -> str:
        """So many slots."""
        self.server.done.append(("resize", slots))
        if not 0 <= slots <= 32:
            raise StateError("slots must be between 0 and pool.max_slots (32)")
        self.server.slots = slots
        return f"The pool has {slots or 24} slots now."

    async def switch_mode(self, mode: str) -> str:
        """The mode of new calls."""
        self.server.done.append(("mode", mode))
        old, self.server.mode = self.server.mode, mode
        return f"New calls get mode {mode}; running calls keep {old}."

    async def isolate(self, call_id: str) -> str:
        """The call's lease moves to a replica of its own."""
        self.server.done.append(("isolate", call_id))
        self.server.check(call_id)
        self.server.isolated[call_id] = "dedicated-4"
        return "The call has the replica dedicated-4 of its own."

    async def probe(self) -> str:
        """Nothing changes."""
        self.server.done.append(("probe", None))
        return "Measured: 24 callers get their final transcripts within 0.60 s."


@dataclass
class ScriptedServer:
    """See the module. Change its fields to change what is shown."""

    at: float = 0.0
    """Seconds since the script began."""
    born_unix: float = 1_790_000_000.0
    leased: int = 18
    queued: int = 7
    slots: int = 0
    """Slots that an operator asked for; 0: 24."""
    mode: str = "shared"
    step: int = 0
    """Of the degradation ladder."""
    is_troubled: bool = True
    has_gpu: bool = True
    has_pool: bool = True
    draining: bool = False
    events: tuple[tuple[float, str], ...] = _EVENTS
    ended: set[str] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)
    isolated: dict[str, str] = field(default_factory=dict)
    done: list[tuple[str, Any]] = field(default_factory=list)
    """Actions, oldest first."""
    fails_with: VoiceRtcError | None = None
    """Raised instead of draining."""

    @property
    def pool(self) -> ScriptedPool | None:
        """None while it ``has_pool`` not."""
        return ScriptedPool(self) if self.has_pool else None

    @property
    def active(self) -> int:
        """Calls that were not ended."""
        return len(self.snapshot())

    @property
    def recent_turns(self) -> RecentTurns:
        """Sixty, one of which was cut."""
        recent = RecentTurns(200)
        for number in range(60 if self.has_pool else 0):
            stages = (0.5 + number / 200, 0.084, 0.19 + number / 300, 0.071, 0.009)
            if number == 30:
                recent.add(TurnTimes(*stages[:2]), "cut")
            else:
                recent.add(TurnTimes(*stages, response=sum(stages)), "heard")
        return recent

    def set_draining(self, draining: bool) -> None:
        """Noted, and shown as the server's status."""
        self.done.append(("drain" if draining else "admit", None))
        if self.fails_with is not None:
            raise self.fails_with
        self.draining = draining

    def check(self, call_id: str) -> None:
        """Raises UnknownCall."""
        if all(state.id != call_id for state in self.snapshot()):
            raise UnknownCall(f"no call has the id {call_id[:64]}")

    def hang_up(self, call_id: str) -> None:
        """It is gone at once. Raises UnknownCall."""
        self.check(call_id)
        self.done.append(("end", f"{call_id} hangup"))
        self.ended.add(call_id)

    def snapshot(self) -> list[CallState]:
        """Leased calls, then those who wait; oldest first."""
        if not self.has_pool:
            return []
        states = [self._live(number) for number in range(self.leased)]
        states += [self._waiting(number) for number in range(self.queued)]
        return [state for state in states if state.id not in self.ended]

    def _live(self, number: int) -> CallState:
        turns = max(0, 23 - number)
        endpoint = 505.0 + 61 * (number * 7 % 5)
        stt, llm, tts = 84.0 + 21 * (number * 3 % 8), 190.0 + 47 * (number % 9), 71.0 + number
        return CallState(
            id=call_id(number + 1),
            age_seconds=round(1_730.0 / (number + 1) + self.at, 1),
            connected=True,
            suspended=False,
            phase="live",
            floor=_FLOORS[(number + int(self.at)) % len(_FLOORS)],
            lease_id=101 + number,
            turns=turns,
            replies=turns,
            frames_received=900,
            inbound_dropped=0,
            underruns=0,
            last_turn=TurnMeasured(
                f"item_{number}", f"resp_{number}", "cut" if number == 4 else "heard",
                endpoint, stt, None if number == 4 else llm, None if number == 4 else tts,
                None if number == 4 else 9.0,
                None if number == 4 else endpoint + stt + llm + tts + 9.0, 0.0,
            )
            if turns > 7
            else None,
        )  # fmt: skip

    def _waiting(self, number: int) -> CallState:
        state = self._live(self.leased + number)
        return replace(
            state, phase="waiting", floor="IDLE", lease_id=None, turns=0, replies=0,
            age_seconds=round(98.0 - 13 * number + self.at, 1), last_turn=None,
        )  # fmt: skip


def view_of(server: ScriptedServer) -> PoolView:
    """The JSON of a scripted server."""

    def readiness() -> Readiness:
        status = "draining" if server.draining else "ready" if server.has_pool else "loading"
        detail = "Ready for calls." if server.has_pool else "Loading Whisper."
        return Readiness(status, detail, {"path": "fast", "reason": ""})

    return PoolView(server, readiness, born=0.0)


class PoolRig:
    """The pool's page and endpoints over a scripted server, on a free loopback port."""

    def __init__(self, **settings: Any) -> None:
        self.server = ScriptedServer()
        self.port = 0
        self._settings = AdminSettings(**{"token": TOKEN, **settings})
        self._runner: web.AppRunner | None = None
        self._app: web.Application | None = None

    async def __aenter__(self) -> PoolRig:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def feed(self) -> PoolFeed:
        """Of the newest start."""
        assert self._app is not None
        return self._app[admin.ADMIN].feed

    async def start(self) -> None:
        """Listen; again on the same port after `stop`."""
        app = web.Application(middlewares=[errors_as_json])
        admin.add_to(app, self._settings, view_of(self.server), self.server)
        app.router.add_static("/static", Path(pages.__file__).parent)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runner, self._app = runner, app
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self.port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Close all connections and listen no more. Idempotent."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
