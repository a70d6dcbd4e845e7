"""Who holds which slot, and who is next (the original plan's ResourceTracker).

A *slot* is the right of one caller to be transcribed; a *lease* is a call's hold on a slot. The
book knows slots and calls by their ids only; it has no clock, does no I/O and takes no locks.

    stranger --request--> waiting --a slot is free--> holding --release--> stranger
                          |  ^ |                      |
                 step_out v  | |                      '--remove_slot (Revoked), pass_on--> stranger
                        absent '--release, TimedOut--> stranger
                             |
                             '--Forgotten, TimedOut, release--> stranger

**Order.** First come, first served: the line is sorted by arrival. A head start (priority by
configuration) moves a caller's arrival that much earlier *in the ordering*, so that priority
never starves anyone: whoever has waited longer than another's head start goes first. Limits and
`Granted.waited_seconds` count from the real arrival.

**Absence.** A waiting caller whose connection broke keeps its place for ``absence_seconds``. It
counts in the positions of those behind it, is not told of its own, and is passed over when a slot
is free; when it comes back it is granted one at once if one is free, else told its position.

**Events.** Every method that can change who holds what returns what happened, in order; the
caller of the book tells those concerned. `LeaseBook._settle` is the one place that decides: after
every change it hands free slots to the first callers present and numbers the line. A position is
announced when it changed and only then. Each call's events end with exactly one `TimedOut`,
`Forgotten` or `Revoked`, or with its own `release`.

**Fencing.** Lease ids rise for ever; a result that carries an older lease than the slot's present
one belongs to somebody who is gone.

**Deadlines are data.** `LeaseBook.next_deadline` is the moment at which `expire` must be called;
it changes with every call of a method. A caller overdue who was not expired yet may still be
granted a slot: better late than never.

Modelled on httpcore's connection pool (one synchronous, total decision that returns what follows
from it) and anyio's CapacityLimiter (first in, first out).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from voice_rtc.errors import QueueFull, StateError

PRIOR_HOLD_SECONDS = 180.0
"""How long a lease is taken to last before any has ended: an ordinary short conversation."""

_FORGETTING = 0.97
"""What one more completed hold leaves of the weight of those before it: about 33 holds count."""


# ------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Granted:
    """The call holds the slot from now on."""

    call: str
    slot: int
    lease: int
    """Fencing number: higher than every one before."""
    waited_seconds: float
    """Since it asked; 0.0 when a slot was free."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The call's position in the line is new or has changed."""

    call: str
    position: int
    """1 is next. Absent callers ahead count."""
    waiting: int
    """Length of the line, itself included."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The call waited ``max_wait_seconds`` in vain and is out of the line."""

    call: str
    waited_seconds: float


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The call was absent for ``absence_seconds`` and has lost its place."""

    call: str


@dataclass(frozen=True, slots=True)
class Revoked:
    """The slot was taken out of service under the call, which holds nothing now."""

    call: str
    slot: int
    lease: int
    reason: str


LeaseEvent = Granted | Moved | TimedOut | Forgotten | Revoked


# --------------------------------------------------------------------------------- snapshots


@dataclass(frozen=True, slots=True)
class LineRules:
    """Bounds of the waiting line."""

    max_waiting: int = 100
    """Callers in the line, absent ones too; 0: nobody waits."""
    max_wait_seconds: float = 300.0
    absence_seconds: float = 30.0
    """How long the place of a caller whose connection broke is kept."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A lease that is held."""

    call: str
    slot: int
    lease: int
    since: float
    """``now`` of the grant."""
    waited_seconds: float


@dataclass(frozen=True, slots=True)
class WaitingCall:
    """One place of the line."""

    call: str
    position: int
    waited_seconds: float
    eta_seconds: float | None
    present: bool
    head_start_seconds: float


@dataclass(frozen=True, slots=True)
class SlotState:
    """One slot in service."""

    slot: int
    hold: Hold | None
    """None: free."""
    retiring: bool
    """Held, and out of service as soon as it is released."""


@dataclass(frozen=True, slots=True)
class LeaseStatistics:
    """Counts since the book was opened, and how things stand.

    ``requested == granted + refused + left + timed_out + forgotten + waiting`` and
    ``granted == released + revoked + leased``.
    """

    slots: int
    """In service, retiring ones too."""
    leased: int
    free: int
    retiring: int
    waiting: int
    absent: int
    requested: int
    granted: int
    refused: int
    """The line was full."""
    left: int
    """Gave up while waiting."""
    timed_out: int
    forgotten: int
    released: int
    revoked: int
    longest_wait_seconds: float
    """Of those whose wait is over, however it ended."""


# -------------------------------------------------------------------------------------- book


@dataclass(slots=True, order=True)
class _Waiter:
    arrival: float
    """When it asked, less its head start: the key of the line."""
    ticket: int
    """Breaks ties: rises with every request."""
    call: str = field(compare=False)
    since: float = field(compare=False)
    """When it asked."""
    position: int = field(compare=False, default=0)
    announced: int = field(compare=False, default=0)
    """The position it was told last; 0: none, or it was absent since."""
    absent_since: float | None = field(compare=False, default=None)

    @property
    def present(self) -> bool:
        return self.absent_since is None


@dataclass(slots=True)
class _Counts:
    requested: int = 0
    granted: int = 0
    refused: int = 0
    left: int = 0
    timed_out: int = 0
    forgotten: int = 0
    released: int = 0
    revoked: int = 0
    longest_wait_seconds: float = 0.0


class _HoldTimes:
    """How long a lease lasts, as if durations were exponential: time held over leases ended.

    Leases that go on count with their age (they are censored, not short), recent ones more than
    old ones, and one imagined lease of ``prior`` seconds stands for what was never measured.
    """

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._seconds = 0.0
        self._ended = 0.0

    def ended(self, seconds: float) -> None:
        self._seconds = self._seconds * _FORGETTING + seconds
        self._ended = self._ended * _FORGETTING + 1.0

    def cut(self, seconds: float) -> None:
        """Revoked: it would have gone on, so its time counts and its end does not."""
        self._seconds += seconds

    def mean(self, ages: float) -> float:
        """``ages``: seconds that the present holds have lasted, summed."""
        return (self._seconds + ages + self._prior) / (self._ended + 1.0)


class LeaseBook:
    """Slots, leases and the waiting line. ``now`` is seconds on any clock that never runs back.

    A request that the state does not allow raises StateError and changes nothing.
    ``rules`` may be replaced at any time; nobody in the line is sent away by a smaller
    ``max_waiting``.
    """

    def __init__(
        self, rules: LineRules = LineRules(), *, prior_hold_seconds: float = PRIOR_HOLD_SECONDS
    ) -> None:
        self.rules = rules
        self._free: dict[int, None] = {}
        """In the order in which they became free; the one longest free is granted first."""
        self._retiring: set[int] = set()
        self._holds: dict[str, Hold] = {}
        self._holders: dict[int, str] = {}
        self._line: list[_Waiter] = []
        self._waiters: dict[str, _Waiter] = {}
        self._last_lease = 0
        self._last_ticket = 0
        self._counts = _Counts()
        self._times = _HoldTimes(prior_hold_seconds)
        self._mean = prior_hold_seconds
        self._mean_at: float | None = None
        """``now`` of the mean; None: leases have changed since."""

    # -- slots ----------------------------------------------------------------------------------

    def add_slot(self, slot: int, now: float) -> list[LeaseEvent]:
        """Take a slot into service; the first caller present gets it at once.

        Raises StateError when the book has the slot, even one that is retiring.
        """
        if self._has(slot):
            raise StateError(f"slot {slot} is in the book already")
        self._free[slot] = None
        return self._settle(now)

    def remove_slot(self, slot: int, now: float, reason: str) -> list[LeaseEvent]:
        """Take a slot out of service at once; its holder's lease is revoked for ``reason``.

        Raises StateError for a slot that the book does not have.
        """
        self._check_slot(slot)
        if slot in self._free:
            del self._free[slot]
            return []
        hold = self._drop_hold(self._holders[slot])
        self._retiring.discard(slot)
        self._counts.revoked += 1
        self._times.cut(_since(hold.since, now))
        return [Revoked(hold.call, slot, hold.lease, reason)]

    def retire_slot(self, slot: int) -> bool:
        """Never grant the slot again. True: it was free and is gone; False: it goes when released.

        Raises StateError for a slot that the book does not have.
        """
        self._check_slot(slot)
        if slot in self._free:
            del self._free[slot]
            return True
        self._retiring.add(slot)
        return False

    # -- calls ----------------------------------------------------------------------------------

    def request(self, call: str, now: float, head_start_seconds: float = 0.0) -> list[LeaseEvent]:
        """Ask for a slot: `Granted` at once, or `Moved` with the place in the line.

        Raises QueueFull when nothing is free and the line is full, and StateError for a call that
        holds or waits already or for a head start that is negative or not finite.
        """
        self._check_stranger(call)
        if not 0.0 <= head_start_seconds < float("inf"):
            raise StateError(f"a head start of {head_start_seconds} seconds makes no sense")
        self._counts.requested += 1
        if not self._free and len(self._line) >= self.rules.max_waiting:
            self._counts.refused += 1
            raise QueueFull
        self._last_ticket += 1
        waiter = _Waiter(now - head_start_seconds, self._last_ticket, call, since=now)
        self._waiters[call] = waiter
        insort(self._line, waiter)
        return self._settle(now)

    def release(self, call: str, now: float) -> list[LeaseEvent]:
        """Give the slot back, or leave the line. Does nothing for a call that does neither."""
        if call in self._holds:
            hold = self._drop_hold(call)
            self._counts.released += 1
            self._times.ended(_since(hold.since, now))
            if hold.slot in self._retiring:
                self._retiring.discard(hold.slot)
            else:
                self._free[hold.slot] = None
        elif call in self._waiters:
            self._drop_waiter(self._waiters[call], now)
            self._counts.left += 1
        else:
            return []
        return self._settle(now)

    def step_out(self, call: str, now: float) -> list[LeaseEvent]:
        """The connection of a waiting caller broke: keep its place, pass it over meanwhile.

        Nothing changes for a caller who is out already. Raises StateError when it does not wait.
        """
        waiter = self._waiting_call(call)
        if waiter.present:
            waiter.absent_since = now
            waiter.announced = 0
        return self._settle(now)

    def step_in(self, call: str, as_call: str, now: float) -> list[LeaseEvent]:
        """A caller who stepped out is back, as ``as_call`` (the same id, or that of a new call).

        It has its old place and is granted a slot or told its position. Raises StateError when
        ``call`` is not waiting (any more) or is present, or when ``as_call`` is in the book.
        """
        waiter = self._waiting_call(call)
        if waiter.present:
            raise StateError(f"call {call} has not stepped out of the line")
        if as_call != call:
            self._check_stranger(as_call)
        del self._waiters[call]
        self._waiters[as_call] = waiter
        waiter.call = as_call
        waiter.absent_since = None
        return self._settle(now)

    def pass_on(self, call: str, as_call: str, now: float) -> list[LeaseEvent]:
        """The holder came back as the new call ``as_call``: it has the slot, under a new lease.

        For the estimate the conversation did not end here. Raises StateError when ``call`` holds
        nothing or ``as_call`` is in the book.
        """
        if call not in self._holds:
            raise StateError(f"call {call} holds no slot")
        self._check_stranger(as_call)
        hold = self._drop_hold(call)
        self._counts.released += 1
        self._times.cut(_since(hold.since, now))
        self._counts.requested += 1
        return [self._hold(as_call, hold.slot, 0.0, now)]

    def take_line(self, other: LeaseBook, now: float) -> list[LeaseEvent]:
        """All who wait in the other book wait in this one from now on, in the order of arrival.

        No limit sends anybody away; to the other book they have left. Raises StateError when this
        book knows one of them.
        """
        coming = list(other._line)
        for waiter in coming:
            self._check_stranger(waiter.call)
        other._line.clear()
        other._waiters.clear()
        other._counts.left += len(coming)
        self._counts.requested += len(coming)
        for waiter in coming:
            self._last_ticket += 1
            waiter.ticket = self._last_ticket
            waiter.announced = 0
            self._waiters[waiter.call] = waiter
            insort(self._line, waiter)
        return self._settle(now)

    # -- time -----------------------------------------------------------------------------------

    def expire(self, now: float) -> list[LeaseEvent]:
        """End what is overdue. To be called at `next_deadline`; harmless at any other time."""
        overdue = [waiter for waiter in self._line if now >= self._deadline(waiter)]
        events = [self._end(waiter, now) for waiter in overdue]
        return events + self._settle(now)

    @property
    def next_deadline(self) -> float | None:
        """When `expire` has something to do; None when nobody waits."""
        return min((self._deadline(waiter) for waiter in self._line), default=None)

    # -- questions ------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Callers in the line, absent ones too."""
        return len(self._line)

    def position(self, call: str) -> int | None:
        """Place in the line, 1 is next; None when it does not wait."""
        waiter = self._waiters.get(call)
        return waiter.position if waiter is not None else None

    def eta_seconds(self, position: int, now: float) -> float | None:
        """How long that place is expected to wait from now on; None without slots.

        With n slots one is released every n-th part of a lease's expected duration, whatever the
        ages of the present leases, if durations are exponential.
        """
        slots = self._slots_to_come()
        return position * self.mean_hold_seconds(now) / slots if slots else None

    def holder(self, slot: int) -> str | None:
        """The call that holds the slot; None when it is free. Raises StateError when unknown."""
        self._check_slot(slot)
        return self._holders.get(slot)

    def lease_of(self, call: str) -> Hold | None:
        """The call's lease, or None."""
        return self._holds.get(call)

    def leases(self) -> tuple[Hold, ...]:
        """All leases, oldest first."""
        return tuple(self._holds.values())

    def slots(self) -> tuple[SlotState, ...]:
        """All slots in service, in the order of their ids."""
        return tuple(self._slot_state(slot) for slot in sorted([*self._free, *self._holders]))

    def waiting_calls(self, now: float) -> tuple[WaitingCall, ...]:
        """The line, in its order."""
        slots, mean = self._slots_to_come(), self.mean_hold_seconds(now)
        return tuple(
            WaitingCall(
                waiter.call,
                waiter.position,
                _since(waiter.since, now),
                waiter.position * mean / slots if slots else None,
                waiter.present,
                waiter.since - waiter.arrival,
            )
            for waiter in self._line
        )

    def mean_hold_seconds(self, now: float) -> float:
        """How long a lease is expected to last, from those that ended and those that go on."""
        if self._mean_at != now:  # once for a whole line that is told its estimates
            ages = sum(_since(hold.since, now) for hold in self._holds.values())
            self._mean, self._mean_at = self._times.mean(ages), now
        return self._mean

    def statistics(self) -> LeaseStatistics:
        """Counts since the beginning, and how things stand."""
        counts = self._counts
        return LeaseStatistics(
            slots=len(self._free) + len(self._holders),
            leased=len(self._holds),
            free=len(self._free),
            retiring=len(self._retiring),
            waiting=len(self._line),
            absent=sum(not waiter.present for waiter in self._line),
            requested=counts.requested,
            granted=counts.granted,
            refused=counts.refused,
            left=counts.left,
            timed_out=counts.timed_out,
            forgotten=counts.forgotten,
            released=counts.released,
            revoked=counts.revoked,
            longest_wait_seconds=counts.longest_wait_seconds,
        )

    def __repr__(self) -> str:
        absent = sum(not waiter.present for waiter in self._line)
        return (
            f"<LeaseBook {len(self._holds)} of {len(self._free) + len(self._holders)} slots "
            f"leased ({len(self._retiring)} retiring), {len(self._line)} waiting "
            f"({absent} absent), last lease {self._last_lease}>"
        )

    # -- inside ---------------------------------------------------------------------------------

    def _settle(self, now: float) -> list[LeaseEvent]:
        """Free slots to the first callers present; then every place its number."""
        events = self._grant_all(now)
        waiting = len(self._line)
        for position, waiter in enumerate(self._line, start=1):
            waiter.position = position
            if waiter.announced != position and waiter.present:
                waiter.announced = position
                events.append(Moved(waiter.call, position, waiting))
        return events

    def _grant_all(self, now: float) -> list[LeaseEvent]:
        if not self._free or not self._line:
            return []
        ready = [waiter for waiter in self._line if waiter.present]
        pairs = zip(ready, tuple(self._free), strict=False)
        return [self._grant(waiter, slot, now) for waiter, slot in pairs]

    def _grant(self, waiter: _Waiter, slot: int, now: float) -> Granted:
        del self._free[slot]
        self._drop_waiter(waiter, now)
        return self._hold(waiter.call, slot, _since(waiter.since, now), now)

    def _hold(self, call: str, slot: int, waited: float, now: float) -> Granted:
        self._last_lease += 1
        self._holds[call] = Hold(call, slot, self._last_lease, now, waited)
        self._mean_at = None
        self._holders[slot] = call
        self._counts.granted += 1
        return Granted(call, slot, self._last_lease, waited)

    def _end(self, waiter: _Waiter, now: float) -> TimedOut | Forgotten:
        self._drop_waiter(waiter, now)
        if self._deadline(waiter) == self._wait_ends(waiter):
            self._counts.timed_out += 1
            return TimedOut(waiter.call, _since(waiter.since, now))
        self._counts.forgotten += 1
        return Forgotten(waiter.call)

    def _deadline(self, waiter: _Waiter) -> float:
        ends = self._wait_ends(waiter)
        if waiter.absent_since is None:
            return ends
        return min(ends, waiter.absent_since + self.rules.absence_seconds)

    def _wait_ends(self, waiter: _Waiter) -> float:
        return waiter.since + self.rules.max_wait_seconds

    def _drop_waiter(self, waiter: _Waiter, now: float) -> None:
        del self._line[bisect_left(self._line, waiter)]
        del self._waiters[waiter.call]
        waited = _since(waiter.since, now)
        self._counts.longest_wait_seconds = max(self._counts.longest_wait_seconds, waited)

    def _drop_hold(self, call: str) -> Hold:
        hold = self._holds.pop(call)
        self._mean_at = None
        del self._holders[hold.slot]
        return hold

    def _slot_state(self, slot: int) -> SlotState:
        call = self._holders.get(slot)
        hold = self._holds[call] if call is not None else None
        return SlotState(slot, hold, slot in self._retiring)

    def _slots_to_come(self) -> int:
        """Slots that will be granted again."""
        return len(self._free) + len(self._holders) - len(self._retiring)

    def _has(self, slot: int) -> bool:
        return slot in self._free or slot in self._holders

    def _check_slot(self, slot: int) -> None:
        if not self._has(slot):
            raise StateError(f"the book has no slot {slot}")

    def _check_stranger(self, call: str) -> None:
        if call in self._holds:
            raise StateError(f"call {call} holds a slot already")
        if call in self._waiters:
            raise StateError(f"call {call} waits for a slot already")

    def _waiting_call(self, call: str) -> _Waiter:
        if call not in self._waiters:
            raise StateError(f"call {call} does not wait for a slot")
        return self._waiters[call]


def _since(then: float, now: float) -> float:
    return max(now - then, 0.0)
