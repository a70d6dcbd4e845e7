"""What each turn cost in time: told to the client, kept for the pool page, logged in one line."""

from __future__ import annotations

from dataclasses import asdict

from voice_rtc.call import events
from voice_rtc.call.context import CallContext, CallerTurn
from voice_rtc.call.reply import Reply
from voice_rtc.core.latency import TurnTimes


class Figures:
    """Of one call's turns and the replies to them."""

    def __init__(self, context: CallContext) -> None:
        self._context = context

    def heard(self, turn: CallerTurn, reply: Reply) -> None:
        """The first sound of the reply to ``turn`` went out."""
        self._measure(turn, reply, "heard")
        response = _times(turn).response
        if response is not None:
            self._context.metrics.response_seconds.observe(response)

    def close(self, turn: CallerTurn | None, reply: Reply, cut: str | None = None) -> None:
        """The reply is over, ``cut`` for that reason. Without a ``turn`` it answered nobody."""
        outcome = _outcome(reply, cut)
        if turn is not None:
            self._measure(turn, reply, outcome)
        times = asdict(_times(turn)) if turn is not None else {}
        self._context.log.info(
            "turn",
            reply=reply.number,
            item=turn.item_id if turn else None,
            outcome=outcome,
            transcript=turn.text if turn else None,
            text=reply.text,
            cut=cut,
            error=reply.error.code if reply.error else None,
            **{f"{k}_seconds": None if v is None else round(v, 3) for k, v in times.items()},
        )

    def _measure(self, turn: CallerTurn, reply: Reply, outcome: str) -> None:
        if turn.measured:
            return
        turn.measured = True
        times = _times(turn)
        self._context.metrics.turn_outcomes_total.labels(outcome).inc()
        self._context.ports.turns.add(times, outcome)
        self._context.emit(
            events.TurnMeasured(
                turn.item_id,
                reply.id if reply.created else None,
                outcome,
                endpoint_ms=_ms(times.endpoint),
                stt_ms=_ms(times.stt),
                llm_first_token_ms=_ms(times.llm_first_token),
                tts_first_audio_ms=_ms(times.tts_first_audio),
                first_packet_ms=_ms(times.first_packet),
                response_ms=_ms(times.response),
                saved_ms=round(times.saved * 1000, 1),
            )
        )


def _times(turn: CallerTurn) -> TurnTimes:
    return turn.clock.times() if turn.clock is not None else TurnTimes()


def _outcome(reply: Reply, cut: str | None) -> str:
    if reply.audible:
        return "heard"
    if cut is not None:
        return "cut"
    if reply.error is not None:
        return "failed"
    if not reply.created:
        return "nothing"
    return "silent" if reply.spoken else "shown"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
