"""Characters cut in two by a service."""

import pytest

from voice_rtc.engines.llm.surrogates import SurrogateJoiner


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        (["plain"], "plain"),
        (["\ud83d", "\ude00!"], "😀!"),
        (["a\ud83d", "\ude00b"], "a😀b"),
        (["\ud83d"], "\ufffd"),
        (["\ude00x"], "\ufffdx"),
        (["\ud83d", "x"], "\ufffdx"),
        (["", "é", ""], "é"),
    ],
)
def test_pairs_are_joined_and_the_rest_is_replaced(pieces: list[str], whole: str) -> None:
    joiner = SurrogateJoiner()
    joined = "".join([*map(joiner.feed, pieces), joiner.flush()])
    assert joined == whole
    joined.encode("utf-8")
