"""The pool's figures as the page and GET /pool show them; docs/pool.md explains each."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import psutil

from voice_rtc.core.ladder import NAMES
from voice_rtc.pool.group import Group
from voice_rtc.pool.lease import Lease
from voice_rtc.pool.replica import Replica

if TYPE_CHECKING:
    from voice_rtc.pool.pool import SttPool
    from voice_rtc.pool.supervisor import Supervisor

Json = dict[str, Any]

STEP_SECONDS = 5.0
_POINTS = 720
SERIES = (
    "at", "leased", "waiting", "slots", "final_p95_ms", "cpu_percent", "rss_mb", "gpu_used_mb",
    "ladder",
)  # fmt: skip
_MOST_LISTED = 1000


class PoolStatus:
    """Reads, never changes."""

    def __init__(self, pool: SttPool, supervisor: Supervisor) -> None:
        self._pool = pool
        self._supervisor = supervisor
        self._points: deque[Json] = deque(maxlen=_POINTS)

    def add_point(self, unix_seconds: float) -> None:
        """One more point of the history; called each `STEP_SECONDS`."""
        governor = self._supervisor.governor
        statistics = self._pool.statistics()
        p95 = governor.finals.percentile(asyncio.get_running_loop().time(), 0.95)
        self._points.append(
            {
                "at": round(unix_seconds, 1),
                "leased": statistics.leased,
                "waiting": statistics.waiting,
                "slots": statistics.slots,
                "final_p95_ms": None if p95 is None else round(p95 * 1000, 1),
                "cpu_percent": governor.machine.figures["cpu_percent"],
                "rss_mb": governor.machine.figures["rss_mb"],
                "gpu_used_mb": governor.machine.gpu_used_mb,
                "ladder": governor.step.step,
            }
        )

    def history(self) -> Json:
        """The last hour, a list for each series."""
        series = {name: [point[name] for point in self._points] for name in SERIES}
        return {"step_seconds": STEP_SECONDS, "series": series}

    def newest_point(self) -> Json | None:
        """The newest point of the history."""
        return self._points[-1] if self._points else None

    def status(self) -> Json:
        """Everything but the history."""
        now = asyncio.get_running_loop().time()
        pool, governor = self._pool, self._supervisor.governor
        settings = pool.settings.pool
        groups = list(pool.groups.values())
        statistics = pool.statistics()
        rollout = {"mode": settings.rollout_mode, "share": settings.rollout_share}
        return {
            "mode": pool.mode,
            "rollout": rollout if settings.rollout_mode else None,
            "fallback": self._fallback(),
            "admission": self._admission(),
            "ladder": self._ladder(now),
            "slots": {
                "total": statistics.slots,
                "leased": statistics.leased,
                "free": statistics.available,
                "target": governor.target(pool.group),
                "max": governor.most_slots(pool.group),
            },
            "sizing": self._sizing(),
            "line": self._line(groups, now),
            "leases": [
                self._lease(lease, now) for g in groups for lease in list(g.leases.values())
            ][:_MOST_LISTED],
            "replicas": [self._replica(each, now) for each in self._supervisor.replicas()],
            "latency": self._latency(now),
            "machine": governor.machine.figures,
            "alerts": governor.alerts.status(now),
            "events": [
                {"age_seconds": round(now - each.at, 1), "text": each.text}
                for each in self._supervisor.happenings
            ],
        }

    def _fallback(self) -> Json | None:
        away = self._supervisor.governor.fallback
        if away is None:
            return None
        return {"from": away.before, "to": away.mode, "reason": away.reason}

    def _admission(self) -> Json:
        state, reason = self._supervisor.governor.admission
        return {"state": state, "reason": reason}

    def _ladder(self, now: float) -> Json:
        step = self._supervisor.governor.step
        return {
            "step": step.step,
            "name": step.name,
            "reason": step.reason,
            "since_seconds": round(now - step.since, 1) if step.since else None,
            "names": list(NAMES),
        }

    def _sizing(self) -> Json:
        governor = self._supervisor.governor
        sizing, gpus = governor.sizing(self._pool.mode), governor.machine.gpus
        return {
            "source": "settings" if governor.fixed else (sizing.source if sizing else "engine"),
            "explanation": sizing.explanation if sizing else "",
            "goal_seconds": self._pool.settings.pool.final_goal_seconds,
            "gpus": [asdict(gpu) for gpu in gpus.gpus],
            "gpu_problem": gpus.problem,
        }

    def _latency(self, now: float) -> Json:
        governor = self._supervisor.governor
        return {
            "final_p50_seconds": _rounded(governor.finals.percentile(now, 0.5)),
            "final_p95_seconds": _rounded(governor.finals.percentile(now, 0.95)),
            "partial_p95_seconds": _rounded(governor.partials.percentile(now, 0.95)),
            "finals_per_minute": governor.finals.per_minute(now),
        }

    def _line(self, groups: list[Group], now: float) -> Json:
        entries: list[Json] = [
            {
                "call": each.call,
                "position": each.position,
                "waited_seconds": round(each.waited_seconds, 1),
                "eta_seconds": None if each.eta_seconds is None else round(each.eta_seconds, 1),
                "mode": group.mode,
                "present": each.present,
            }
            for group in groups
            for each in group.book.waiting_calls(now)
        ]
        return {
            "waiting": len(entries),
            "max_waiting": self._pool.settings.pool.max_waiting,
            "longest_wait_seconds": max((e["waited_seconds"] for e in entries), default=0.0),
            "entries": entries[:_MOST_LISTED],
        }

    def _lease(self, lease: Lease, now: float) -> Json:
        holders = (r.name for r in self._supervisor.replicas() if lease.call_id in r.leases)
        return {
            "id": lease.id,
            "call": lease.call_id,
            "slot": lease.slot,
            "replica": next(holders, None),
            "mode": lease.mode,
            "held_seconds": round(now - lease.granted_at, 1),
            "utterances": lease.session.utterances,
            "replays": lease.session.replays,
            "audio_kb": round(lease.session.kept_bytes / 1000, 1),
        }

    def _replica(self, replica: Replica, now: float) -> Json:
        health = replica.engine_health()
        info = replica.engine.info
        probed = replica.probed_at
        return {
            "name": replica.name,
            "mode": replica.mode,
            "role": replica.role,
            "engine": info.name,
            "model": info.model,
            "device": replica.device,
            "state": replica.state.value,
            "pids": list(health.pids),
            "leases": len(replica.leases),
            "slots": self._supervisor.governor.slots_of(replica),
            "busy_seconds": round(health.busy_seconds, 3),
            "silent_seconds": round(health.silent_seconds, 3),
            "probe_seconds": _rounded(replica.probe_seconds),
            "probe_age_seconds": None if probed is None else round(now - probed, 1),
            "failures": replica.failures,
            "age_seconds": round(now - replica.born, 1),
            "rss_mb": memory_mb(health.pids),
            "batch_mean": round(health.batch_mean, 2),
            "reason": replica.reason,
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def memory_mb(pids: tuple[int, ...]) -> float:
    """Resident memory of processes; 0.0 for those that are gone."""
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return round(total / 1e6, 1)


def own_memory_mb() -> float:
    """Resident memory of this process."""
    return memory_mb((os.getpid(),))
