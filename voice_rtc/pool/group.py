"""The slots, the waiting line and the replicas of one mode."""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
from dataclasses import dataclass, field

import structlog

from voice_rtc.core.leases import (
    Forgotten,
    Granted,
    LeaseBook,
    LeaseEvent,
    LineRules,
    Moved,
    Revoked,
    TimedOut,
)
from voice_rtc.engines.base import SttMode
from voice_rtc.errors import CallReplaced, QueueTimeout
from voice_rtc.metrics import Metrics
from voice_rtc.pool.lease import REPLACED, Lease, LeaseRequest, Place
from voice_rtc.pool.replica import Replica

_log = structlog.get_logger("voice_rtc.pool")

_RETRY_SECONDS = 5.0
"""After which who is refused may ask again, when nothing is known."""


@dataclass(slots=True, eq=False)
class Waiter:
    """A call that asked for a slot and has not got it yet."""

    group: Group
    """Where it waits; another one after the pool has changed its mode."""
    request: LeaseRequest
    granted: asyncio.Future[Granted]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    told: bool = False
    """It knows its place, and with it its token."""
    keeps_place: bool = False
    """Its connection is lost: it has stepped out of the line, and its place stays."""


class Group:
    """Decisions are the `LeaseBook`'s; here they are carried out."""

    def __init__(self, mode: SttMode, rules: LineRules, metrics: Metrics) -> None:
        self.mode: SttMode = mode
        self.book = LeaseBook(rules)
        self.replicas: list[Replica] = []
        self.waiters: dict[str, Waiter] = {}
        self.leases: dict[str, Lease] = {}
        self._metrics = metrics
        self._tokens: dict[str, str] = {}
        """Resume token -> call id that has the place or, for a while, the slot."""
        self._token_of: dict[str, str] = {}
        self._slots: set[int] = set()
        self._wanted = 0
        self._held = False

    # -------------------------------------------------------------------- slots

    @property
    def slots(self) -> int:
        """Slots in service."""
        return len(self._slots)

    @property
    def lent(self) -> int:
        """Slots that are held, those that a call is about to take included."""
        return len(self.book.leases())

    def resize(self, count: int, now: float) -> None:
        """Have ``count`` slots; those that are held go when they are given back."""
        self._wanted = count
        self._fit(now)

    @property
    def held(self) -> bool:
        """Is nothing granted?"""
        return self._held

    def hold(self, held: bool, now: float) -> None:
        """Grant nothing to those who wait, free slot or not, until it is lifted."""
        if held != self._held:
            self._held = held
            self._fit(now)

    def _fit(self, now: float) -> None:
        """Slots that go but are still held count: never are more lent than there are to be."""
        lent = self._lent_slots()
        count = min(self._wanted, len(lent)) if self._held else self._wanted
        free = sorted(self._slots - lent, reverse=True)
        for slot in free[: max(0, len(self._slots | lent) - count)]:
            self._retire(slot)
        for slot in sorted(self._slots, reverse=True)[: max(0, len(self._slots) - count)]:
            self._retire(slot)
        while not self._held and len(self._slots | self._lent_slots()) < self._wanted:
            self._new_slot(now)

    def _lent_slots(self) -> set[int]:
        return {hold.slot for hold in self.book.leases()}

    def _retire(self, slot: int) -> None:
        self.book.retire_slot(slot)
        self._slots.discard(slot)

    def add_slot(self, now: float) -> None:
        """One more slot; goes to the first who waits."""
        self.resize(self._wanted + 1, now)

    def remove_slot(self, now: float) -> None:
        """One slot less."""
        self.resize(max(0, self._wanted - 1), now)

    def _new_slot(self, now: float) -> None:
        taken = self._slots | self._lent_slots()
        slot = next(number for number in itertools.count(1) if number not in taken)
        self._slots.add(slot)
        self.apply(self.book.add_slot(slot, now), now)

    def give_back(self, lease: Lease, now: float) -> None:
        """The lease is over: its slot goes to the next, unless slots are to be fewer."""
        del self.leases[lease.call_id]
        self._forget_token(lease.call_id)
        self._release(lease.call_id, now)

    def _release(self, call_id: str, now: float) -> None:
        hold = self.book.lease_of(call_id)
        if hold is not None and hold.slot in self._slots:
            others = (self._slots | self._lent_slots()) - {hold.slot}
            if self._held or len(others) >= self._wanted:
                self._retire(hold.slot)
        self.apply(self.book.release(call_id, now), now)
        self._fit(now)

    # ---------------------------------------------------------------------- line

    def enter(self, request: LeaseRequest, now: float) -> Waiter:
        """Ask for a slot. Raises QueueFull."""
        waiter = Waiter(self, request, asyncio.get_running_loop().create_future())
        if self.knows(request.resume, now):
            events = self._take_over(self._tokens[request.resume], request.call_id, now)
        else:
            events = self.book.request(request.call_id, now, request.head_start_seconds)
        self.waiters[request.call_id] = waiter
        self._tokens[waiter.token] = request.call_id
        self._token_of[request.call_id] = waiter.token
        self.apply(events, now)
        return waiter

    def _take_over(self, before: str, call_id: str, now: float) -> list[LeaseEvent]:
        """The same caller on a new connection: its old call ends, its place or slot is kept."""
        self._forget_token(before)
        old = self.waiters.pop(before, None)
        if self.book.position(before) is None:
            revoked = old.request.on_revoked if old else self.leases[before].on_revoked
            if revoked is not None:
                revoked(REPLACED)
            return self.book.pass_on(before, call_id, now)
        events = self.book.step_out(before, now)
        if old is not None and not old.granted.done():
            old.granted.set_exception(CallReplaced())
        return events + self.book.step_in(before, call_id, now)

    def take_line(self, other: Group, now: float) -> None:
        """Who waits in the other group waits in this one from now on, with the same token."""
        coming = [each.call for each in other.book.waiting_calls(now)]
        events = self.book.take_line(other.book, now)
        for call_id in coming:
            if (waiter := other.waiters.pop(call_id, None)) is not None:
                waiter.group = self
                self.waiters[call_id] = waiter
            if (token := other._token_of.pop(call_id, None)) is not None:
                del other._tokens[token]
                self._token_of[call_id] = token
                self._tokens[token] = call_id
        self.apply(events, now)

    def leave(self, waiter: Waiter, now: float) -> None:
        """The caller waits no more, or holds no more. Idempotent."""
        call_id = waiter.request.call_id
        if self.waiters.get(call_id) is waiter:
            del self.waiters[call_id]
            if waiter.keeps_place and self.book.position(call_id) is not None:
                return
        self._forget_token(call_id)
        self._release(call_id, now)

    def keep_place(self, call_id: str, now: float) -> None:
        """The caller's connection is lost: if it waits its place stays, and others pass it."""
        waiter = self.waiters.get(call_id)
        if waiter is not None and self.book.position(call_id) is not None:
            waiter.keeps_place = True
            self.apply(self.book.step_out(call_id, now), now)

    def give_up_place(self, call_id: str, now: float) -> bool:
        """The caller hung up, now or after its connection was lost. False when it has no place."""
        if self.book.position(call_id) is None:
            return False
        self._forget_token(call_id)
        self._release(call_id, now)
        return True

    def retry_after_seconds(self, now: float) -> int:
        """When somebody who is refused now may find a place: an estimate.

        The line moves when a call ends, or when somebody in it has waited too long.
        """
        deadline = self.book.next_deadline
        waits = (self.book.eta_seconds(1, now), None if deadline is None else deadline - now)
        known = [seconds for seconds in waits if seconds is not None]
        return max(1, math.ceil(min(known, default=_RETRY_SECONDS)))

    def expire(self, now: float) -> None:
        """Carry out what is due."""
        self.apply(self.book.expire(now), now)

    def knows(self, token: str, now: float) -> bool:
        """Does this token give back a place, or a slot that its caller may not have heard of?

        A lost connection is noticed late, and meanwhile it may have been granted a slot.
        """
        call_id = self._tokens.get(token)
        if call_id is None or self.book.position(call_id) is not None:
            return call_id is not None
        hold = self.book.lease_of(call_id)
        return hold is not None and now - hold.since <= self.book.rules.absence_seconds

    def tell_places(self, now: float) -> None:
        """Tell everybody who waits where they stand."""
        for waiter in list(self.waiters.values()):
            self.tell_place(waiter, now)

    def tell_place(self, waiter: Waiter, now: float) -> None:
        """Tell one caller, if it still waits."""
        place = self.place_of(waiter, now)
        if place is not None and waiter.request.on_place is not None:
            waiter.told = True
            waiter.request.on_place(place)

    def place_of(self, waiter: Waiter, now: float) -> Place | None:
        """Where the caller stands; None when it waits no more."""
        position = self.book.position(waiter.request.call_id)
        if position is None or waiter.granted.done():
            return None
        eta = self.book.eta_seconds(position, now)
        return Place(position, self.book.waiting, eta, waiter.token)

    # -------------------------------------------------------------------- events

    def apply(self, events: list[LeaseEvent], now: float) -> None:
        """Carry out what the book decided."""
        for event in events:
            match event:
                case Granted():
                    self._grant(event, now)
                case Moved(call=call):
                    if (waiter := self.waiters.get(call)) is not None:
                        self.tell_place(waiter, now)
                case TimedOut(call=call, waited_seconds=waited):
                    self._time_out(call, waited)
                case Revoked(call=call, reason=reason):
                    self._revoke(call, reason)
                case Forgotten(call=call):
                    self._forget_token(call)

    def _grant(self, granted: Granted, now: float) -> None:
        waiter = self.waiters.get(granted.call)
        if waiter is None or waiter.granted.done():
            # Its task was cancelled a moment ago: the slot goes to the next.
            self._release(granted.call, now)
            return
        if not waiter.told:
            self._forget_token(granted.call)
        self._metrics.leases_total.labels("granted").inc()
        self._metrics.lease_wait_seconds.labels(self.mode).observe(granted.waited_seconds)
        waiter.granted.set_result(granted)

    def _time_out(self, call_id: str, waited: float) -> None:
        self._metrics.leases_total.labels("timed_out").inc()
        self._forget_token(call_id)
        waiter = self.waiters.get(call_id)
        if waiter is not None and not waiter.granted.done():
            waiter.granted.set_exception(QueueTimeout(f"no slot became free in {waited:.0f} s"))

    def _revoke(self, call_id: str, reason: str) -> None:
        self._forget_token(call_id)
        lease = self.leases.get(call_id)
        _log.warning("lease_revoked", call=call_id, reason=reason)
        self._metrics.leases_total.labels("revoked").inc()
        if lease is not None and lease.on_revoked is not None:
            lease.on_revoked(reason)

    def _forget_token(self, call_id: str) -> None:
        token = self._token_of.pop(call_id, None)
        if token is not None:
            self._tokens.pop(token, None)
