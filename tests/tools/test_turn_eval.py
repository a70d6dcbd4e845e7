"""The turn-taking evaluation: its scores from synthetic timelines, and its callers' sounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.support.audio import constant, tone
from tests.support.server import serving
from tests.tools.bot_stories import LOUD, event, frame
from tools.bot_audio import HeardFrame
from tools.bot_events import Received
from tools.recognise import words
from tools.turn_eval.partner import answer
from tools.turn_eval.remembered import is_error, words_heard
from tools.turn_eval.score import Act, CallScore, cut_replies, judge
from tools.turn_eval.scripts import SOUNDS, Piece, Role, Script, Step, scripts
from tools.turn_eval.sounds import Echo, Loop, Voices, trimmed
from tools.turn_eval.summary import by_kind, of_noises, table
from tools.turn_eval.timeline import laid_out, placed, replies
from tools.turn_eval.trial import Outcome, Recall, Target, Trial
from tools.wav import is_audible, resample
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_FRAME_SAMPLES, SEND_RATE_HZ, silence
from voice_rtc.engines.base import EngineSet
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts

# ---------------------------------------------------------------------------- a story's parts


def said(
    began: float,
    ended: float,
    role: Role = "turn",
    keys: tuple[str, ...] = (),
    kind: str = "plain",
    text: str = "hello",
) -> Act:
    return Act(kind, role, text, keys, began, ended)


def spoken(start: float, end: float) -> list[HeardFrame]:
    """The agent is audible from ``start`` to ``end``."""
    first = round(start / 0.02)
    return [frame(0.02 * number, number, LOUD) for number in range(first, round(end / 0.02))]


def commit(at: float, item: str, text: str = "") -> list[Received]:
    kind = "conversation.item.input_audio_transcription.completed"
    return [
        event("input_audio_buffer.committed", at, item_id=item),
        event(kind, at + 0.05, item_id=item, transcript=text),
    ]


def reply(
    name: str,
    at: float,
    audible: float | None,
    over: float,
    status: str = "completed",
    text: str = "",
) -> list[Received]:
    """Created ``at``, audible and over then; a cancelled one was cut."""
    events = [
        event("response.created", at, response={"id": name}),
        event("response.output_item.added", at, response_id=name, item={"id": f"item_{name}"}),
    ]
    if text:
        kind = "response.output_audio_transcript.done"
        events.append(event(kind, at, response_id=name, transcript=text))
    if audible is not None:
        events.append(event("output_audio_buffer.started", audible - 0.05, response_id=name))
    if status == "cancelled":
        events.append(
            event("conversation.item.truncated", over, item_id=f"item_{name}", audio_end_ms=700)
        )
    body = {"id": name, "status": status}
    return [*events, event("response.done", over, response=body)]


def scored(
    acts: Sequence[Act], events: Sequence[Received], frames: Sequence[HeardFrame]
) -> CallScore:
    ordered = sorted(events, key=lambda each: each.at)
    return judge(acts, ordered, replies(ordered, placed(frames)))


# -------------------------------------------------------------------------------------- turns


def test_dead_air_is_from_the_last_word_to_the_first_audible_frame():
    events = [*commit(2.5, "a", "hello"), *reply("r", 2.6, 2.9, 4.0)]
    turn = scored([said(1.0, 2.0)], events, spoken(2.9, 4.0)).turns[0]
    assert not any((turn.cut_off, turn.early, turn.silent, turn.unheard))
    assert turn.dead_air == pytest.approx(0.9, abs=0.021)
    assert turn.commit_seconds == pytest.approx(0.5)
    assert turn.transcript == "hello"


def test_an_agent_that_is_audible_before_the_turn_is_over_cuts_it_off():
    events = [*commit(2.0, "a"), *reply("r", 2.1, 2.5, 4.0)]
    turn = scored([said(1.0, 3.0)], events, spoken(2.5, 4.0)).turns[0]
    assert turn.cut_off
    assert turn.dead_air is None


def test_a_response_made_in_a_pause_and_heard_after_the_turn_cuts_it_off():
    events = [*commit(2.0, "a"), *reply("r", 2.9, 3.2, 4.0)]
    assert scored([said(1.0, 3.0)], events, spoken(3.2, 4.0)).turns[0].cut_off


def test_a_response_that_is_withdrawn_unheard_does_not_cut_off():
    events = [
        *commit(2.0, "a", "I would like"),
        *reply("r", 2.1, None, 2.4, "cancelled"),
        *commit(3.5, "b", "seven apples"),
        *reply("s", 3.6, 3.8, 5.0),
    ]
    turn = scored([said(1.0, 3.0)], events, spoken(3.8, 5.0)).turns[0]
    assert (turn.cut_off, turn.early) == (False, True)
    assert turn.dead_air == pytest.approx(0.8, abs=0.021)
    assert turn.commit_seconds == pytest.approx(0.5)
    assert turn.transcript == "I would like seven apples"


def test_a_committed_turn_without_a_reply_is_silent_and_one_without_a_commit_unheard():
    acts = [said(1.0, 2.0), said(20.0, 21.0)]
    first, second = scored(acts, commit(2.5, "a"), []).turns
    assert (first.silent, first.unheard) == (True, False)
    assert (second.silent, second.unheard) == (False, True)


@pytest.mark.parametrize(
    ("transcript", "text", "stale"),
    [
        ("go to Paris on Monday", "You said go to Paris on Monday.", False),
        ("go to Paris on Monday", "You said go to Paris.", True),
        ("go to Paris", "You said go to Paris.", False),
        ("go there", "You said go there.", None),
    ],
)
def test_a_reply_to_older_words_than_were_understood_is_stale(transcript, text, stale):
    events = [*commit(2.5, "a", transcript), *reply("r", 2.6, 2.9, 4.0, text=text)]
    turn = scored([said(1.0, 2.0, keys=("paris", "monday"))], events, spoken(2.9, 4.0)).turns[0]
    assert turn.stale is stale


def test_each_turn_has_its_own_reply():
    acts = [said(1.0, 2.0), said(6.0, 7.0)]
    events = [
        *commit(2.5, "a", "one"),
        *reply("r", 2.6, 3.0, 4.0),
        *commit(7.5, "b", "two"),
        *reply("s", 7.6, 8.4, 9.0),
    ]
    score = scored(acts, events, [*spoken(3.0, 4.0), *spoken(8.4, 9.0)])
    assert [turn.transcript for turn in score.turns] == ["one", "two"]
    assert [turn.dead_air for turn in score.turns] == pytest.approx([1.0, 1.4], abs=0.021)


# --------------------------------------------------------------------------------- over a reply

STORY = [*commit(2.5, "a"), *reply("r", 2.6, 3.0, 5.3, "cancelled")]


def test_an_interruption_is_timed_to_the_last_audible_frame_of_what_it_cut():
    acts = [said(1.0, 2.0), said(5.0, 5.6, "interruption")]
    events = [*STORY, *commit(6.0, "b"), *reply("s", 6.1, 6.5, 8.0)]
    score = scored(acts, events, [*spoken(3.0, 5.4), *spoken(6.5, 8.0)])
    cut = score.interruptions[0]
    assert (cut.reply, cut.moot, cut.missed) == ("r", False, False)
    assert cut.silence_seconds == pytest.approx(0.4, abs=0.021)
    assert not score.turns[1].cut_off  # what it interrupts was there before
    assert score.turns[1].dead_air == pytest.approx(0.9, abs=0.021)


def test_a_reply_that_goes_on_is_a_missed_interruption():
    acts = [said(1.0, 2.0), said(5.0, 5.6, "interruption")]
    events = [*commit(2.5, "a"), *reply("r", 2.6, 3.0, 9.0)]
    cut = scored(acts, events, spoken(3.0, 9.0)).interruptions[0]
    assert (cut.moot, cut.missed, cut.silence_seconds) == (False, True, None)


def test_a_reply_that_was_over_anyway_was_not_missed():
    acts = [said(1.0, 2.0), said(5.0, 5.6, "interruption")]
    events = [*commit(2.5, "a"), *reply("r", 2.6, 3.0, 5.4)]
    cut = scored(acts, events, spoken(3.0, 5.4)).interruptions[0]
    assert (cut.moot, cut.missed) == (True, False)


def test_a_server_that_is_done_making_before_it_was_heard_is_cut_by_its_truncation():
    """As OpenAI's: ``response.done`` comes when all was made, long before it was played."""
    acts = [said(1.0, 2.0), said(5.0, 5.6, "interruption")]
    made = reply("r", 2.6, 3.0, 3.1)
    cleared = event("output_audio_buffer.cleared", 5.2, response_id="r")
    cut = scored(acts, [*commit(2.5, "a"), *made, cleared], spoken(3.0, 5.3)).interruptions[0]
    assert (cut.moot, cut.missed) == (False, False)
    assert cut.silence_seconds == pytest.approx(0.3, abs=0.021)


def test_a_cough_that_cuts_the_reply_is_a_false_barge_in():
    acts = [said(1.0, 2.0), said(5.0, 5.3, "noise")]
    noise = scored(acts, STORY, spoken(3.0, 5.4)).noises[0]
    assert (noise.moot, noise.false, noise.resumed) == (False, True, False)


def test_a_reply_that_pauses_for_a_cough_and_goes_on_is_not_cut():
    acts = [said(1.0, 2.0), said(5.0, 5.3, "noise")]
    events = [*commit(2.5, "a"), *reply("r", 2.6, 3.0, 9.0)]
    noise = scored(acts, events, [*spoken(3.0, 5.2), *spoken(5.8, 9.0)]).noises[0]
    assert (noise.moot, noise.false, noise.resumed) == (False, False, True)
    assert not noise.answered
    assert noise.hole_seconds == pytest.approx(0.6, abs=0.021)


def test_a_backchannel_may_let_the_reply_go_on_and_be_answered_all_the_same():
    acts = [said(1.0, 2.0), said(5.0, 5.3, "noise")]
    events = [
        *commit(2.5, "a"),
        *reply("r", 2.6, 3.0, 7.0),
        *commit(7.1, "b", "me"),
        *reply("s", 7.2, 7.6, 9.0),
    ]
    noise = scored(acts, events, [*spoken(3.0, 7.0), *spoken(7.6, 9.0)]).noises[0]
    assert (noise.false, noise.resumed, noise.answered) == (False, True, True)


def test_a_cough_behind_the_reply_is_moot():
    acts = [said(1.0, 2.0), said(5.5, 5.8, "noise")]
    events = [*commit(2.5, "a"), *reply("r", 2.6, 3.0, 5.0)]
    noise = scored(acts, events, spoken(3.0, 5.0)).noises[0]
    assert (noise.moot, noise.false) == (True, False)


def test_a_cut_by_the_next_true_interruption_is_not_the_coughs():
    acts = [said(1.0, 2.0), said(3.5, 3.8, "noise"), said(5.0, 5.6, "interruption")]
    score = scored(acts, STORY, spoken(3.0, 5.4))
    assert not score.noises[0].false
    assert not score.interruptions[0].missed


# ------------------------------------------------------------------------------------ timeline


def test_frames_that_the_jitter_buffer_held_lie_where_they_would_have_been_played():
    """The last ones come only when the next reply pushes them out."""
    held = [frame(9.0, 52, LOUD), frame(9.0, 53, LOUD)]
    frames = placed([frame(1.0, 50, LOUD), frame(1.02, 51, LOUD), *held, frame(9.0, 450, LOUD)])
    assert [each.at for each in frames] == pytest.approx([1.0, 1.02, 1.04, 1.06, 9.0])


def test_without_the_event_of_its_beginning_a_reply_begins_when_it_was_created():
    events = [each for each in STORY if each.type != "output_audio_buffer.started"]
    (heard,) = replies(events, placed(spoken(3.0, 4.0)))
    assert heard.first == pytest.approx(3.0)
    assert heard.cut_ms == 700
    assert cut_replies([heard]) == [heard]


def test_a_reply_that_was_never_audible_was_not_cut_in_the_middle():
    events = reply("r", 2.1, None, 2.4, "cancelled")
    assert cut_replies(replies(events, [])) == []


def test_what_was_heard_is_laid_out_with_its_silences():
    sound = laid_out(placed([*spoken(1.0, 1.02), *spoken(1.06, 1.08)]), 0.98, 1.1)
    loud = [bool(sound[at : at + 960].any()) for at in range(0, len(sound), 960)]
    assert loud == [False, True, False, False, True, False]


# ------------------------------------------------------------------------------------- scripts


def test_the_same_seed_gives_the_same_scripts_and_another_others():
    assert scripts(100, 3) == scripts(100, 3)
    assert scripts(100, 3) != scripts(100, 4)


def test_there_are_at_least_as_many_turns_as_asked_for_of_every_kind():
    chosen = scripts(100)
    assert sum(script.turns for script in chosen) >= 100
    assert {script.kind for script in chosen} >= {
        "plain", "pause in a sentence", "hesitation", "pause before the last word", "short answer",
        "fast follow-up", "two-part question", "backchannel", "cough, click, noise",
        "babble at -20 dB", "echo at -20 dB", "echo at -10 dB", "interruption, early",
        "interruption, late", "interruption, repeated", "stop, wait",
    }  # fmt: skip


def every_piece(chosen: Sequence[Script]) -> list[Piece]:
    return [piece for script in chosen for step in script.steps for piece in step.pieces]


def test_pauses_within_a_turn_are_as_long_as_people_make_them():
    pauses = [piece.pause for piece in every_piece(scripts(200)) if piece.pause]
    assert min(pauses) >= 0.2
    assert max(pauses) <= 1.5


def test_keys_are_words_of_the_step_and_not_of_what_every_reply_says():
    filler = set(words(answer([{"role": "user", "content": "A story."}])))
    filler |= set(words(answer([{"role": "user", "content": "Hello."}])))
    for script in scripts(200):
        for step in script.steps:
            assert set(step.keys) <= set(words(step.text))
            assert not set(step.keys) & filler


def test_the_partner_quotes_the_newest_words_and_asks_back_where_something_is_missing():
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Old words."},
        {"role": "assistant", "content": "Well."},
        {"role": "user", "content": "Book a table for me."},
    ]
    assert answer(messages) == "Book a table for me. Yes or no?"
    assert len(answer([{"role": "user", "content": "Tell me a story."}]).split()) > 30


# -------------------------------------------------------------------------------------- sounds


@pytest.fixture
async def voices():
    made = Voices()
    await made.start()
    yield made
    await made.aclose()


async def test_a_pause_is_exactly_as_long_as_written(voices):
    first, second = Piece("I would like"), Piece("seven apples.", 0.8)
    apart = await voices.said([first, second], "en-us", 0)
    alone = [await voices.said([piece], "en-us", 0) for piece in (first, Piece(second.text))]
    pauses = len(apart) - len(alone[0]) - len(alone[1])
    # espeak-ng does not make quite the same sound twice.
    assert pauses == pytest.approx(0.8 * SEND_RATE_HZ, abs=SEND_FRAME_SAMPLES)
    assert is_audible(alone[0][:960]) and is_audible(alone[0][-960:])


@pytest.mark.parametrize("name", SOUNDS)
async def test_sounds_can_be_heard_and_differ_by_their_seed(voices, name):
    one, two = [await voices.said([Piece(name)], "en-us", seed) for seed in (1, 2)]
    assert is_audible(one)
    assert len(one) < SEND_RATE_HZ
    assert not np.array_equal(one, two)


async def test_listening_makes_no_sound(voices):
    assert len(await voices.said([Piece("")], "en-us", 0)) == 0


async def test_babble_is_as_much_quieter_as_asked_for(voices):
    loud, quiet = await voices.babble(-10.0), await voices.babble(-30.0)
    ratio = np.sqrt(np.mean(loud.astype(float) ** 2) / np.mean(quiet.astype(float) ** 2))
    assert 20 * np.log10(ratio) == pytest.approx(20.0, abs=0.5)


def test_a_loop_goes_round():
    loop = Loop(np.arange(1000, dtype=np.int16))
    assert loop(0.0).tolist() == list(range(960))
    assert loop(0.02).tolist() == [*range(960, 1000), *range(920)]


def test_an_echo_comes_back_later_and_quieter():
    frames = [frame(0.5, 0, LOUD)]
    echo = Echo(frames, -20.0, 0.2)
    frames += [frame(1.0, 1, LOUD), frame(1.02, 2, LOUD)]
    assert not echo(1.1).any()
    assert echo(1.2).tolist() == [500] * SEND_FRAME_SAMPLES
    assert echo(1.22).any()
    assert not echo(1.24).any()


def test_an_echo_that_lags_catches_up():
    frames: list[HeardFrame] = []
    echo = Echo(frames, 0.0, 0.0)
    frames += [frame(0.02 * n, n, constant(n, SEND_FRAME_SAMPLES)) for n in range(100)]
    assert echo(5.0)[0] == 90


def test_silence_is_trimmed_from_both_ends():
    quiet = silence(SEND_FRAME_SAMPLES)
    assert len(trimmed(np.concatenate([quiet, tone(0.1), quiet]))) == len(tone(0.1))
    assert len(trimmed(quiet)) == 0


# ---------------------------------------------------------------------------------- remembered

TEXT = "You said tell me a story. The table is in the kitchen and the piano is by the window."


@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 19, 19), (0.6, 9, 13), (0.3, 4, 8)])
async def test_the_words_heard_are_counted(voices, share, least, most):
    sound = resample(await voices.said([Piece(TEXT)], "en-us", 0), SEND_RATE_HZ, LISTEN_RATE_HZ)
    assert least <= words_heard(sound[: round(share * len(sound))], TEXT) <= most


def test_of_silence_nothing_was_heard():
    assert words_heard(silence(0), TEXT) == 0
    assert words_heard(silence(LISTEN_RATE_HZ), "") == 0


def test_a_word_that_was_cut_in_its_middle_may_be_remembered_and_no_more():
    assert not is_error("You said tell", 2)
    assert is_error("You said tell me", 2)
    assert not is_error("", 0)


# ------------------------------------------------------------------------------------- summary


def outcome() -> Outcome:
    acts = [said(1.0, 2.0), said(5.0, 5.6, "interruption", kind="stop, wait")]
    cough = said(12.0, 12.3, "noise", kind="cough, click, noise", text="cough")
    asked = said(9.0, 10.0, kind="cough, click, noise")
    events = [
        *STORY,
        *commit(6.0, "b"),
        *reply("s", 6.1, 6.5, 8.0),
        *commit(10.5, "c"),
        *reply("t", 10.6, 11.0, 14.0),
    ]
    frames = [*spoken(3.0, 5.4), *spoken(6.5, 8.0), *spoken(11.0, 14.0)]
    made = Outcome("default", scored([*acts, asked, cough], events, frames), calls=1, seconds=60.0)
    made.recalls = [Recall("cut", 3, 9, "one two three four five"), Recall("noise", 9, 10, None)]
    return made


def test_the_table_has_a_row_for_every_figure():
    rows = {
        cells[1].strip(): cells[2].strip()
        for cells in (line.split("|") for line in table([outcome()]).splitlines()[2:])
    }
    assert rows["turns"] == "3 in 1 calls, 1 min"
    assert rows["turns cut off"] == "0 of 3 (0 %)"
    assert rows["true interruptions missed"] == "0 of 1 (0 %)"
    assert rows["silent within 200 ms"] == "0 of 1 (0 %)"
    assert rows["false barge-ins: replies cut by a noise"] == "0 of 1 (0 %)"
    assert rows["replies that went on to their end"] == "1 of 1 (100 %)"
    assert rows["cut replies remembered with unheard words"] == "1 of 1 (100 %)"
    assert rows["words heard of the replies that were not cut"] == "9 of 10 (90 %)"


def test_kinds_and_noises_have_rows_of_their_own():
    assert "| stop, wait | 0 of 1 (0 %), 900 ms |" in by_kind([outcome()])
    assert "| cough | 0 of 1 (0 %) |" in of_noises([outcome()])


def test_nothing_measured_is_no_figure():
    lines = table([Outcome("default")]).splitlines()
    assert "| turns cut off | none |" in lines


# ------------------------------------------------------------------------------- the whole way


async def test_a_call_is_performed_and_scored():
    long = "This reply goes on for quite a while, so that there is time to interrupt it."
    engines = EngineSet(
        ThresholdVad(),
        ScriptedStt(["Tell me a story.", "Please stop now."]),
        EchoLlm([long, "Very well."]),
        ToneTts(),
    )
    ask = Step((Piece("Tell me a story."),))
    stop = Step((Piece("Please stop now."),), "interruption", 0.5)
    async with serving(engines) as server:
        trial = Trial("default", Target(server.url, {}), [Script("stop", (ask, stop))], True)
        made = await trial.run(calls=1, seconds=30.0)
    assert made.errors == []
    assert [turn.transcript for turn in made.score.turns] == [
        "Tell me a story.",
        "Please stop now.",
    ]
    assert not any(turn.cut_off or turn.silent for turn in made.score.turns)
    assert all(turn.dead_air is not None for turn in made.score.turns)
    (cut,) = made.score.interruptions
    assert not cut.missed and not cut.moot
    (recall,) = [each for each in made.recalls if each.use == "cut"]
    assert recall.remembered is not None and long.startswith(recall.remembered.rstrip(" .,—"))
    caller, agent = made.logs[0].recording()
    assert len(caller) >= len(agent) > 3 * SEND_RATE_HZ
    assert is_audible(caller) and is_audible(agent)
