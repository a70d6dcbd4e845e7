"""The operators' files in docs/monitoring: they ask only for what the server exports.

The names and labels in PromQL expressions are found by a small tokeniser, and compared with what
`Metrics` registers. promtool, where there is one, checks the rules and runs their unit tests.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from voice_rtc.metrics import Metrics

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "monitoring"
PROMTOOL = shutil.which("promtool") or shutil.which(
    "promtool", path=str(ROOT / "build" / "promtool" / "usr" / "bin")
)

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is missing: `make promtool`, or Debian's package prometheus"
)

SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""
OF_PROMETHEUS: dict[str, set[str]] = {"up": set()}


def exported() -> dict[str, set[str]]:
    """Every series that the server may have, with its own labels."""
    registry = Metrics().registry
    labels = {
        name: set(getattr(collector, "_labelnames", ()))
        for collector, names in registry._collector_to_names.items()
        for name in names
    }
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    found = dict(OF_PROMETHEUS)
    for family in registry.collect():
        for suffix in suffixes.get(family.type, ("",)):
            series = family.name + suffix
            found[series] = labels.get(series, set()) | ({"le"} if suffix == "_bucket" else set())
    return found


# ------------------------------------------------------------------------------------- PromQL

_TOKEN = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
      | (?P<range>\[[^\]]*\])
      | (?P<name>[A-Za-z_:][A-Za-z0-9_:]*)
      | (?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?[smhdwy]?)
      | (?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){},])
      | (?P<space>\s+)""",
    re.VERBOSE,
)
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = _GROUPING | {"and", "or", "unless", "bool", "offset", "inf", "nan"}

Use = tuple[str, set[str]]


def tokens(expression: str) -> list[str]:
    """Words and signs of a PromQL expression. Raises ValueError for anything else."""
    found, at = [], 0
    while at < len(expression):
        match = _TOKEN.match(expression, at)
        if match is None:
            raise ValueError(f"not PromQL from here: {expression[at:]!r}")
        if match.lastgroup not in ("space", "text", "range", "number"):
            found.append(match.group())
        at = match.end()
    return found


def uses(expression: str) -> tuple[list[Use], set[str]]:
    """Metrics with the labels they are chosen by, and the labels that results are grouped by."""
    words = tokens(expression)
    metrics: list[Use] = []
    grouped: set[str] = set()
    at = 0
    while at < len(words):
        word, after = words[at], words[at + 1] if at + 1 < len(words) else ""
        at += 1
        if word in _GROUPING and after == "(":
            end = words.index(")", at)
            grouped |= {each for each in words[at:end] if each.isidentifier()}
            at = end
        elif not word[0].isalpha() and word[0] != "_":
            continue
        elif after == "(" or word in _WORDS or after in _GROUPING:
            continue
        elif after == "{":
            end = words.index("}", at)
            metrics.append((word, {each for each in words[at:end] if each.isidentifier()}))
            at = end
        else:
            metrics.append((word, set()))
    return metrics, grouped


def complaints(expression: str, known: dict[str, set[str]]) -> list[str]:
    """What the expression asks for that is not there."""
    metrics, grouped = uses(expression)
    found = [f"no metric {name}" for name, _ in metrics if name not in known]
    every: set[str] = set(SCRAPED)
    for name, labels in metrics:
        own = known.get(name, set()) | SCRAPED
        every |= own
        found += [f"{name} has no label {label}" for label in sorted(labels - own)]
    found += [f"nothing here has the label {label}" for label in sorted(grouped - every)]
    return found if metrics else [*found, "asks for nothing"]


@pytest.mark.parametrize(
    ("expression", "metrics", "grouped"),
    [
        ("up == 0", [("up", set())], set()),
        ('up{job="a by b", instance=~"x{y}"} == 0', [("up", {"job", "instance"})], set()),
        (
            "histogram_quantile(0.95, sum by (le, mode) (rate(a_bucket[5m]))) > 1.5e3",
            [("a_bucket", set())],
            {"le", "mode"},
        ),
        (
            "sum(a) by (x) / on (y) group_left (z) b offset 5m and not_a_word",
            [("a", set()), ("b", set()), ("not_a_word", set())],
            {"x", "y", "z"},
        ),
        ("increase(a_total[$__rate_interval])", [("a_total", set())], set()),
    ],
)
def test_the_tokeniser(expression: str, metrics: list[Use], grouped: set[str]) -> None:
    assert uses(expression) == (metrics, grouped)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("voice_rtc_no_such > 1", "no metric voice_rtc_no_such"),
        ("voice_rtc_leases_total_total", "no metric voice_rtc_leases_total_total"),
        ("voice_rtc_leases", "no metric voice_rtc_leases"),
        ("voice_rtc_stt_final_seconds > 1", "no metric voice_rtc_stt_final_seconds"),
        ('voice_rtc_pool_slots{stage="x"}', "voice_rtc_pool_slots has no label stage"),
        ("sum by (call) (voice_rtc_pool_slots)", "nothing here has the label call"),
        ("1 + 2", "asks for nothing"),
    ],
)
def test_what_is_not_exported_is_found(expression: str, complaint: str) -> None:
    assert complaint in complaints(expression, exported())


def test_what_is_not_promql_is_refused() -> None:
    with pytest.raises(ValueError, match="not PromQL"):
        tokens("voice_rtc_pool_slots ? 1")


# ------------------------------------------------------------------------------------- alerts


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert complaints(rule["expr"], exported()) == []
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    document, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert document == "docs/operations.md" and anchor in anchors(), f"nobody explains {anchor}"


def anchors() -> set[str]:
    """Headings of the runbook as links name them; it is a part of docs/operations.md."""
    texts = [ROOT / "docs" / "operations.md", ROOT / "docs" / "runbook.md"]
    lines = [line for file in texts if file.exists() for line in file.read_text().splitlines()]
    heads = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^a-z0-9 -]", "", head).replace(" ", "-") for head in heads}


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) >= 12


def promtool(*arguments: str) -> str:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_prometheus_takes_the_rules_and_the_example() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", "alerts.yml")
    assert "is valid" in promtool("check", "config", "prometheus.yml")


@needs_promtool
def test_the_rules_pass_their_own_tests() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yml")


def test_the_example_scrapes_under_the_name_that_the_alerts_know() -> None:
    [job] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert job["job_name"] == "voice-rtc" and job["metrics_path"] == "/metrics"
    assert any(f'job="{job["job_name"]}"' in rule["expr"] for rule in rules())


# ---------------------------------------------------------------------------------- dashboard

DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text())


def queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for note in DASHBOARD["annotations"]["list"]:
        yield note["name"], note["expr"]


@pytest.mark.parametrize(("title", "expression"), list(queries()))
def test_a_panel_asks_for_what_there_is(title: str, expression: str) -> None:
    assert complaints(expression, exported()) == [], title


@needs_promtool
def test_prometheus_can_read_the_panels_expressions(tmp_path: Path) -> None:
    variables = {"$__rate_interval": "5m", "$job": ".*", "$instance": ".*"}
    found = []
    for number, (_, expression) in enumerate(queries()):
        for name, value in variables.items():
            expression = expression.replace(name, value)
        found.append({"record": f"panel:{number}", "expr": expression})
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": found}]}))
    promtool("check", "rules", str(file))


def test_the_dashboard_has_its_rows_and_takes_any_prometheus() -> None:
    panels = DASHBOARD["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Calls", "Pool", "Turns", "Machine",
    ]  # fmt: skip
    assert DASHBOARD["uid"] == "voice-rtc" and DASHBOARD["schemaVersion"] >= 39
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for panel in panels:
        for part in (panel, *panel.get("targets", ())):
            assert panel["type"] == "row" or part["datasource"]["uid"] == "${datasource}"
    for name in re.findall(r"\$\{?(\w+)", json.dumps([query for _, query in queries()])):
        assert name in variables or name == "__rate_interval", name


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_every_metric_of_the_pool_is_shown_somewhere() -> None:
    shown = {name for _, query in queries() for name, _ in uses(query)[0]}
    shown |= {name for rule in rules() for name, _ in uses(rule["expr"])[0]}
    wanted = {
        "voice_rtc_" + name
        for name in (
            "leases_active pool_slots pool_waiting lease_wait_seconds_bucket leases_total replicas "
            "engine_restarts_total degradation_step admission_state stt_final_seconds_bucket "
            "stt_partial_seconds_bucket engine_queue_seconds_bucket stt_replays_total "
            "probe_seconds probes_total memory_pressure gpu_memory_bytes loop_lag_seconds_bucket "
            "alerts_active pool_utilisation_ratio response_seconds_bucket"
        ).split()
    }
    assert wanted <= shown, wanted - shown
