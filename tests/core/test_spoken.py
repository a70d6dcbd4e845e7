"""Written words as they are said."""

from __future__ import annotations

import pytest

from voice_rtc.core.sentences import speakable
from voice_rtc.core.spoken import spoken_form


@pytest.mark.parametrize(
    ("written", "said"),
    [
        # addresses
        ("See https://www.example.com/x.", "See example dot com slash x."),
        ("See http://example.com/ now.", "See example dot com now."),
        ("Go to example.com, please.", "Go to example dot com, please."),
        ("Go to WWW.Example.COM/Help!", "Go to Example dot COM slash Help!"),
        ("docs.my-site.io/a_b/c", "docs dot my dash site dot i o slash a underscore b slash c"),
        ("https://a.com/x?id=1&b=2#top is it.", "a dot com slash x is it."),
        ("http://localhost:8080/v1", "localhost colon 8080 slash v1"),
        ("(see https://a.org/b)", "(see a dot org slash b)"),
        (
            "Mail ann.lee+x@mail.example.org.",
            "Mail ann dot lee plus x at mail dot example dot org.",
        ),
        ("a_b@c.de, or me@x.io", "a underscore b at c dot d e, or me at x dot i o"),
        ("I use node.js and ASP.NET daily.", "I use node.js and ASP.NET daily."),
        ("me.co and about.me/x", "me dot co and about dot me slash x"),
        ("see bbc.co.uk/news", "see bbc dot co dot u k slash news"),
        ("It is done.It works, no.No.", "It is done.It works, no.No."),
        ("at 192.168.0.1.", "at 192 dot 168 dot 0 dot 1."),
        # telephones
        ("Call +1 555-123-4567.", "Call +1, 5 5 5, 1 2 3, 4 5 6 7."),
        ("Call (555) 123-4567 now", "Call 5 5 5, 1 2 3, 4 5 6 7 now"),
        ("+49 30 901820", "+4 9, 3 0, 9 0 1 8 2 0"),
        ("from 1990-2000", "from 1990 to 2000"),
        # money
        ("$5", "5 dollars"),
        ("$1", "1 dollar"),
        ("It is $3.50.", "It is 3 dollars and 50 cents."),
        ("$1.01", "1 dollar and 1 cent"),
        ("$0.99", "99 cents"),
        ("$7.00", "7 dollars"),
        ("$1,234.56", "1,234 dollars and 56 cents"),
        ("$1.5 million", "1.5 million dollars"),
        ("$20k or $3bn", "20 thousand dollars or 3 billion dollars"),
        ("US$5", "5 dollars"),
        ("5 € or 5€ or €5", "5 euros or 5 euros or 5 euros"),
        ("£2.50", "2 pounds and 50 pence"),
        ("¥500", "500 yen"),
        ("$5-10", "5 to 10 dollars"),
        ("€5–€10", "5 to 10 euros"),
        ("-$5", "minus 5 dollars"),
        ("$HOME and $ alone", "$HOME and $ alone"),
        # units
        ("10 °C, 50°F", "10 degrees Celsius, 50 degrees Fahrenheit"),
        ("100 km/h", "100 kilometers per hour"),
        ("1 km or 5km", "1 kilometer or 5 kilometers"),
        ("16 GB at 3.5 GHz", "16 gigabytes at 3.5 gigahertz"),
        ("200 ms", "200 milliseconds"),
        ("a 90° turn", "a 90 degrees turn"),
        ("5 mmm", "5 mmm"),
        ("-5 °C", "minus 5 degrees Celsius"),
        ("COVID-19 and F-16", "COVID-19 and F-16"),
        # times, dates, ranges
        ("at 3:30 p.m.", "at 3 30 p.m."),
        ("at 3:05.", "at 3 oh 5."),
        ("at 3:00", "at 3 o'clock"),
        ("at 3:00 PM", "at 3 PM"),
        ("at 15:00", "at 15:00"),
        ("at 09:45", "at 9 45"),
        ("it took 1:02:03", "it took 1:02:03"),
        ("3:2", "3:2"),
        ("on 2026-11-25", "on November 25, 2026"),
        ("on 2026-13-25", "on 2026-13-25"),
        ("5-10 people", "5 to 10 people"),
        ("pages 12–15", "pages 12 to 15"),
        ("10-5", "10-5"),
        ("3.14 and 1,000.5", "3.14 and 1,000.5"),
        ("the 1990s and 2010s", "the nineteen nineties and twenty tens"),
        (
            "the 2000s, 1900s, ’80s and 60's",
            "the two thousands, nineteen hundreds, eighties and sixties",
        ),
        # versions, marks, abbreviations
        ("v1.2.3 is out", "version 1.2.3 is out"),
        ("You are #1", "You are number 1"),
        ("~50 people", "about 50 people"),
        ("R & D", "R and D"),
        ("AT&T", "AT&T"),
        ("3×4", "3 times 4"),
        ("a tool, e.g. a hammer", "a tool, for example a hammer"),
        ("a tool, e. g. a hammer", "a tool, for example a hammer"),
        ("that is, i.e. now", "that is, that is now"),
        ("cats vs. dogs", "cats versus dogs"),
        ("pears, etc. are", "pears, et cetera are"),
        ("pears, etc.", "pears, et cetera."),
        ("the max_tokens field", "the max tokens field"),
        ("50% of it", "50% of it"),
        ("Dr. Smith, 2nd floor", "Dr. Smith, 2nd floor"),
        ("你好，世界。", "你好，世界。"),
    ],
)
def test_english(written, said):
    assert spoken_form(written, "en") == said
    assert spoken_form(written, "en-GB") == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Siehe https://www.beispiel.de/a?b=1.", "Siehe beispiel.de/a."),
        ("Ruf +49 30 901820 an.", "Ruf +4 9, 3 0, 9 0 1 8 2 0 an."),
        ("Es kostet 3,50 €, z.B. um 3:30.", "Es kostet 3,50 €, z.B. um 3:30."),
        ("a.b@c.de", "a.b@c.de"),
        ("10 °C & 5-10", "10 °C & 5-10"),
        ("feld_name", "feld name"),
    ],
)
def test_other_languages_are_left_to_the_engine(written, said):
    assert spoken_form(written, "de") == said
    assert spoken_form(written, "") == said


def test_markup_is_gone_before():
    text = "See [the **docs**](https://a.io/b) or <https://a.io>: `max_tokens` is $5!"
    assert (
        spoken_form(speakable(text), "en") == "See the docs or a dot i o: max tokens is 5 dollars!"
    )


@pytest.mark.parametrize(
    "run", ["1", "1.", "1,", "a.", "+1 ", "$", "1-", "a@", "/", "1:", "-", "v1."]
)
def test_long_runs_take_no_time_to_speak_of(run):
    # A pattern that tries all ways to cut a run up would not come back within the test's deadline.
    spoken_form(run * 500 + "x", "en")
