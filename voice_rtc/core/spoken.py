"""From written words to words as they are said, for what speech engines read badly.

Engines read plain numbers, per cents and titles well in their languages; what they spell out or
stumble over is written out here: addresses of the web and of mail, telephone numbers, money,
units, clock times, dates of computers. Digits that must be heard one by one are the same in every
language; all else is English, and other languages are left to the engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_Match = re.Match[str]
_Rule = tuple[re.Pattern[str], Callable[[_Match], str] | str]

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_CENTURIES = {"17": "seventeen", "18": "eighteen", "19": "nineteen", "20": "twenty"}
_TENS = (
    "", "tens", "twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties",
    "nineties",
)  # fmt: skip
_DOMAINS = (
    r"(?:com|org|net|edu|gov|int|info|biz|io|dev|app|ai|tv|me|co|eu|de|fr|es|it|nl|be|ch|at|pl|se"
    r"|no|dk|fi|uk|ie|us|ca|au|nz|jp|cn|in|br|mx|ru)"
)
_HOST = rf"(?:[a-z0-9-]+\.)+{_DOMAINS}"
_PATH = r"(?:/[^\s<>\"'()\[\]{}]*)?"
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_SCALE = r"(?:\s?(?:thousand|million|billion|trillion)|(?:k|K|M|bn|B|T)(?![\w]))?"
_SCALES = {"k": "thousand", "M": "million", "bn": "billion", "B": "billion", "T": "trillion"}
_MONEY = {
    "$": ("dollar", "cent"),
    "€": ("euro", "cent"),
    "£": ("pound", "pence"),
    "¥": ("yen", ""),
    "₹": ("rupee", "paise"),
}
_SIGNS = "[" + "".join(_MONEY) + "]"
_UNITS = {
    "km/h": "kilometers per hour",
    "m/s": "meters per second",
    "mph": "miles per hour",
    "°C": "degrees Celsius",
    "°F": "degrees Fahrenheit",
    "°": "degrees",
    "km": "kilometers",
    "cm": "centimeters",
    "mm": "millimeters",
    "kg": "kilograms",
    "mg": "milligrams",
    "ml": "milliliters",
    "kWh": "kilowatt hours",
    "kW": "kilowatts",
    "kB": "kilobytes",
    "KB": "kilobytes",
    "MB": "megabytes",
    "GB": "gigabytes",
    "TB": "terabytes",
    "Mbps": "megabits per second",
    "Hz": "hertz",
    "kHz": "kilohertz",
    "MHz": "megahertz",
    "GHz": "gigahertz",
    "ms": "milliseconds",
}
_ONE = {"feet": "foot", "hertz": "hertz", "degrees": "degree"}
_MARKS = {".": "dot", "/": "slash", "-": "dash", "_": "underscore", "~": "tilde", ":": "colon"}


def spoken_form(text: str, language: str) -> str:
    """``text``, which `speakable` made plain, as it is said in ``language`` (a code; "": unknown).

    What the caller is shown stays as it was written.
    """
    if _WRITTEN.search(text) is None:  # most sentences: the rules take a millisecond
        return " ".join(text.split())
    rules = _ENGLISH if language.lower().partition("-")[0] == "en" else _EVERYWHERE
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


# ------------------------------------------------------------------------------- addresses


def _address(found: _Match) -> str:
    """A URL without what nobody says: scheme, www, query, fragment, and a slash at its end."""
    address, end = _without_end(found.group())
    address = re.sub(r"^(?:https?://)?(?:www\.)?", "", address, flags=re.IGNORECASE)
    address = re.split(r"[?#]", address)[0].rstrip("/")
    return _marks_said(address) + end


def _bare_address(found: _Match) -> str:
    address, end = _without_end(found.group())
    address = re.sub(r"^https?://(?:www\.)?", "", address, flags=re.IGNORECASE)
    return re.split(r"[?#]", address)[0].rstrip("/") + end


def _mail(found: _Match) -> str:
    user, _, host = found.group().partition("@")
    return f"{_marks_said(user).replace('+', ' plus ')} at {_marks_said(host)}"


def _without_end(address: str) -> tuple[str, str]:
    """Punctuation at the end belongs to the sentence."""
    bare = address.rstrip(".,;:!?")
    return bare, address[len(bare) :]


def _marks_said(address: str) -> str:
    # .de and .io are spelled, .me and .co are words
    address = re.sub(r"\.(?!co\b|me\b|to\b)([a-z])([a-z])(?=[/:]|$)", r".\1 \2", address, count=1)
    said = re.sub(r"[./_~:-]", lambda mark: f" {_MARKS[mark.group()]} ", address)
    return " ".join(said.split())


def _phone(found: _Match) -> str:
    """Digit by digit, with a pause between the groups."""
    groups = re.findall(r"\d+", found.group())
    plus = "+" if found.group().startswith("+") else ""
    return plus + ", ".join(" ".join(group) for group in groups)


def _digits_one_by_one(found: _Match) -> str:
    return " dot ".join(found.group().split("."))


# ----------------------------------------------------------------------- amounts and times


def _money(found: _Match) -> str:
    sign, amount, scale = found["sign"], found["amount"], (found["scale"] or "").strip()
    scale = _SCALES.get("k" if scale == "K" else scale, scale)
    name, small = _MONEY[sign]
    whole, _, cents = amount.partition(".")
    if scale:
        return f"{amount} {scale} {_many(name)}"
    if len(cents) != 2 or not small:
        return f"{amount} {name if amount == '1' else _many(name)}"
    big = f"{whole} {name if whole == '1' else _many(name)}"
    if cents == "00":
        return big
    rest = f"{cents.lstrip('0')} {small if cents == '01' or small[-1] == 'e' else _many(small)}"
    return rest if whole == "0" else f"{big} and {rest}"


def _money_range(found: _Match) -> str:
    sign = found["sign"]
    return f"{found['low']} to {sign}{found['high']}"


def _many(name: str) -> str:
    return name if name == "yen" else f"{name}s"


def _unit(found: _Match) -> str:
    name = _UNITS[found["unit"]]
    if found["amount"] == "1":
        first, _, rest = name.partition(" ")
        name = f"{_ONE.get(first, first.removesuffix('s'))} {rest}".strip()
    return f"{found['amount']} {name}"


def _clock(found: _Match) -> str:
    hour, minute = found["hour"].lstrip("0") or "0", found["minute"]
    if minute == "00":
        if re.match(r"\s?[ap]\.?m", found.string[found.end() :], re.IGNORECASE):
            return hour
        return f"{hour} o'clock" if 1 <= int(hour) <= 12 else found.group()
    return f"{hour} oh {minute[1]}" if minute[0] == "0" else f"{hour} {minute}"


def _date(found: _Match) -> str:
    return f"{_MONTHS[int(found['month']) - 1]} {int(found['day'])}, {found['year']}"


def _decade(found: _Match) -> str:
    century, ten = found["century"], found["ten"]
    if not century:
        return _TENS[int(ten)]
    if ten == "0":
        return "two thousands" if century == "20" else f"{_CENTURIES[century]} hundreds"
    return f"{_CENTURIES[century]} {_TENS[int(ten)]}"


def _range(found: _Match) -> str:
    low, high = found["low"], found["high"]
    if float(low.replace(",", "")) < float(high.replace(",", "")):
        return f"{low} to {high}"
    return found.group()


# ----------------------------------------------------------------------------------- rules


_WRITTEN = re.compile(r"[\d@_/&]|\w\.\w|\b[ei]\.\s|\b(?:vs|etc|approx)\b", re.IGNORECASE)
"""What there is of in every text that a rule changes."""
_MAIL = re.compile(rf"(?<![\w.])[\w.+-]+@{_HOST}(?![\w-])", re.IGNORECASE)
_URL = re.compile(r"https?://[^\s<>\"()\[\]{}]+", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w.,/-])(?:"
    r"\+\d{1,3}(?:[ .-]?\(?\d{1,5}\)?){2,6}"  # international
    r"|(?:\+?1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}"  # North America
    r")(?![\w/-])"
)
_DATE = re.compile(
    r"(?<![\w-])(?P<year>\d{4})-(?P<month>0[1-9]|1[0-2])-(?P<day>0[1-9]|[12]\d|3[01])(?![\w-])"
)

_EVERYWHERE: tuple[_Rule, ...] = (
    (_URL, _bare_address),
    (_PHONE, _phone),
    (re.compile(r"(?<=[a-zA-Z0-9])_+(?=[a-zA-Z0-9])"), " "),
)

_ENGLISH: tuple[_Rule, ...] = (
    (_MAIL, _mail),
    (_URL, _address),
    (re.compile(rf"(?<![\w.@-])www\.{_HOST}{_PATH}(?![\w-])", re.IGNORECASE), _address),
    # In small letters, else the next sentence's "It" behind a missing space would be Italy.
    (re.compile(rf"(?<![\w.@-])(?:[A-Za-z0-9-]+\.)+{_DOMAINS}{_PATH}(?![\w-])"), _address),
    (_DATE, _date),
    (_PHONE, _phone),
    (re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)"), _digits_one_by_one),
    (re.compile(r"\b[vV](?=\d+(?:\.\d+)+)"), "version "),
    (
        re.compile(
            rf"(?P<sign>{_SIGNS})(?P<low>{_NUMBER})\s?[-–]\s?(?:{_SIGNS})?(?P<high>{_NUMBER})"
        ),
        _money_range,
    ),
    (re.compile(rf"(?<!\w)[-−](?=(?:{_SIGNS})?\d)"), "minus "),
    (
        re.compile(
            rf"(?:\bUS|\bUSD )?(?P<sign>{_SIGNS})\s?(?P<amount>{_NUMBER})(?P<scale>{_SCALE})"
        ),
        _money,
    ),
    (
        re.compile(
            rf"(?<![\w.,])(?P<amount>{_NUMBER})(?P<scale>{_SCALE})\s?(?P<sign>{_SIGNS})(?![\w])"
        ),
        _money,
    ),
    (
        re.compile(rf"(?<![\w.,])(?P<low>{_NUMBER})\s?–\s?(?P<high>{_NUMBER})(?![\w–-]|[.,]\d)"),
        _range,
    ),
    (re.compile(rf"(?<![\w.,-])(?P<low>{_NUMBER})-(?P<high>{_NUMBER})(?![\w-]|[.,]\d)"), _range),
    (
        re.compile(
            rf"(?<![\w.,])(?P<amount>{_NUMBER})\s?(?P<unit>"
            + "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
            + r")(?![\w/])"
        ),
        _unit,
    ),
    (
        re.compile(r"(?<![\w:.])(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)(?![\w:]|\.\d)"),
        _clock,
    ),
    (re.compile(r"\b(?P<century>17|18|19|20)(?P<ten>\d)0['’]?s\b"), _decade),
    (re.compile(r"(?<![\w.,])['’]?(?P<century>)(?P<ten>[2-9])0['’]?s\b"), _decade),
    (re.compile(r"#(?=\d)"), "number "),
    (re.compile(r"(?<!\w)~\s?(?=\d)"), "about "),
    (re.compile(r"(?<=\s)&(?=\s)"), "and"),
    (re.compile(r"(?<=\d)\s?×\s?(?=\d)"), " times "),
    (re.compile(r"(?<!\w)e\.\s?g\.(?!\w)", re.IGNORECASE), "for example"),
    (re.compile(r"(?<!\w)i\.\s?e\.(?!\w)", re.IGNORECASE), "that is"),
    (re.compile(r"(?<!\w)vs\.?(?!\w)", re.IGNORECASE), "versus"),
    (re.compile(r"(?<!\w)approx\.(?!\w)", re.IGNORECASE), "approximately"),
    (re.compile(r"(?<!\w)etc\.(?=\s+[a-z,;])"), "et cetera"),
    (re.compile(r"(?<!\w)etc\.(?!\w)"), "et cetera."),
    (re.compile(r"(?<=[a-zA-Z0-9])_+(?=[a-zA-Z0-9])"), " "),
)
