"""Events reach their receiver, signed, in order, and never keep the server waiting."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import openai
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from signaling.main import running_server
from signaling.webhook import (
    Answer,
    Target,
    WebhookRules,
    Webhooks,
    http_post,
    retry_after_seconds,
    sign,
    webhook_target,
)
from tests.support.caller import calling
from tests.support.receiver import Receiver, receiving
from tests.support.server import serving
from tests.support.virtual_time import run_virtual
from voice_rtc.config import AdminSettings, Settings
from voice_rtc.core.alerts import Alert, AlertRules, Cleared, Raised
from voice_rtc.errors import ConfigError
from voice_rtc.metrics import Metrics

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
SERVER = "http://voice.example:8080"
QUICK = WebhookRules(first_wait_seconds=0.001, longest_wait_seconds=0.01)
BUSY = Raised(Alert("pool_utilisation", "warning", "9 of 10 slots are leased (90%)", 5.0))


def target(url: str, secret: str = "") -> Target:
    found = webhook_target(AdminSettings(alert_webhook=url, webhook_secret=secret))
    assert found is not None
    return found


def results(metrics: Metrics) -> dict[str, float]:
    samples = [
        (sample.labels["result"], sample.value)
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "voice_rtc_webhooks_total"
    ]
    return dict(samples)


async def settled(metrics: Metrics) -> None:
    """Wait until something has become of the first event."""
    while not results(metrics):  # noqa: ASYNC110 - a metric tells nobody
        await asyncio.sleep(0.001)


# ------------------------------------------------------------------------ a real receiver


@asynccontextmanager
async def sending(
    to: Target, rules: WebhookRules = QUICK, **more: Any
) -> AsyncIterator[tuple[Webhooks, Metrics]]:
    """Webhooks that run within the block and are flushed at its end."""
    metrics = Metrics()
    webhooks = Webhooks(to, metrics, SERVER, rules, **more)
    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        tasks.create_task(webhooks.run())
        yield webhooks, metrics
        webhooks.close()


async def test_an_alert_is_delivered_with_who_what_and_when() -> None:
    async with receiving() as receiver, sending(target(receiver.url)) as (webhooks, metrics):
        webhooks.send_alert(BUSY)
        webhooks.send_alert(Cleared(BUSY.alert))
        raised, cleared = await receiver.delivered(2)
    body = raised.json
    age = datetime.now(tz=UTC) - datetime.fromisoformat(body.pop("timestamp"))
    assert timedelta() <= age < timedelta(minutes=1)
    alert = {"name": "pool_utilisation", "severity": "warning",
             "text": "9 of 10 slots are leased (90%)"}  # fmt: skip
    assert body == {
        "id": raised.id,
        "type": "alert.raised",
        "server": {"host": socket.gethostname(), "url": SERVER},
        "data": {"alert": alert},
    }
    assert raised.headers["content-type"] == "application/json"
    assert "webhook-signature" not in raised.headers  # there is no secret
    assert (cleared.json["type"], cleared.json["data"]) == ("alert.cleared", {"alert": alert})
    assert raised.id.startswith("evt_") and cleared.id != raised.id
    assert results(metrics) == {"delivered": 2}


async def test_a_signature_is_that_of_standard_webhooks() -> None:
    async with receiving() as receiver, sending(target(receiver.url, SECRET)) as (webhooks, _):
        webhooks.send("call.ended", {"words": "Grüße — 你好"})
        (delivery,) = await receiver.delivered(1)
    assert delivery.is_signed_with(SECRET)
    assert not delivery.is_signed_with("whsec_" + base64.b64encode(bytes(32)).decode())
    # Somebody else's verifier of the same scheme.
    client = openai.OpenAI(api_key="none", webhook_secret=SECRET)
    client.webhooks.verify_signature(delivery.body, delivery.headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(delivery.body + b" ", delivery.headers)
    client.close()
    assert delivery.json["data"] == {"words": "Grüße — 你好"}


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_it_is_sent_again_after_an_answer_that_may_pass(status: int) -> None:
    async with (
        receiving(status, status) as receiver,
        sending(target(receiver.url, SECRET)) as (webhooks, metrics),
    ):
        webhooks.send_alert(BUSY)
        first, second, third = await receiver.delivered(3)
    assert first.id == second.id == third.id and first.body == third.body
    assert all(each.is_signed_with(SECRET) for each in (first, second, third))
    assert results(metrics) == {"delivered": 1}


async def test_it_is_sent_again_after_a_refused_connection() -> None:
    answers: list[Answer] = []
    failed = asyncio.Event()

    @asynccontextmanager
    async def noted(to: Target, seconds: float) -> AsyncIterator[Any]:
        async with http_post(to, seconds) as post:

            async def note(body: bytes, headers: Mapping[str, str]) -> Answer:
                answers.append(await post(body, headers))
                failed.set()
                return answers[-1]

            yield note

    async with receiving() as gone:
        pass
    stubborn = WebhookRules(tries=100_000, first_wait_seconds=0.001, longest_wait_seconds=0.01)
    async with sending(target(gone.url), stubborn, connect=noted) as (webhooks, metrics):
        webhooks.send_alert(BUSY)
        await failed.wait()
        async with receiving(port=gone.port) as back:
            await back.delivered(1)
            await settled(metrics)
    assert answers[0].problem.startswith("no connection: ConnectionRefusedError")
    assert answers[-1] == Answer(204)
    assert results(metrics) == {"delivered": 1}


@pytest.mark.parametrize("status", [301, 400, 401, 404, 410])
async def test_other_answers_are_final(status: int) -> None:
    async with receiving(status) as receiver, sending(target(receiver.url)) as (webhooks, metrics):
        webhooks.send_alert(BUSY)
        webhooks.send_alert(Cleared(BUSY.alert))
        _, second = await receiver.delivered(2)
    assert second.json["type"] == "alert.cleared"
    assert results(metrics) == {"refused": 1, "delivered": 1}


async def test_a_redirect_is_not_followed() -> None:
    async with receiving() as elsewhere:
        away = web.Response(status=307, headers={"Location": elsewhere.url})
        async with receiving(away) as receiver, sending(target(receiver.url)) as (webhooks, _):
            webhooks.send_alert(BUSY)
            await receiver.delivered(1)
        assert not elsewhere.deliveries


async def test_it_is_given_up_after_all_tries() -> None:
    async with receiving(*[500] * 6) as receiver, sending(target(receiver.url)) as (hooks, metrics):
        hooks.send_alert(BUSY)
        hooks.send_alert(Cleared(BUSY.alert))
        deliveries = await receiver.delivered(7)
    assert [each.json["type"] for each in deliveries] == ["alert.raised"] * 6 + ["alert.cleared"]
    assert results(metrics) == {"given_up": 1, "delivered": 1}


async def test_a_receiver_that_does_not_answer_has_a_deadline() -> None:
    impatient = WebhookRules(tries=2, attempt_seconds=0.2, first_wait_seconds=0.001)
    with capture_logs() as logs:
        async with (
            receiving(None, None) as receiver,
            sending(target(receiver.url), impatient) as (webhooks, metrics),
        ):
            webhooks.send_alert(BUSY)
            await settled(metrics)
    assert results(metrics) == {"given_up": 1}
    assert [line["why"] for line in logs] == ["no answer within 0.2 s"] * 2


async def test_an_endless_answer_is_not_read() -> None:
    class Endless(web.StreamResponse):
        async def write_eof(self, data: bytes = b"") -> None:
            while True:
                await self.write(bytes(65_536))

    endless: Any = Endless()
    async with receiving(endless) as receiver, sending(target(receiver.url)) as (webhooks, metrics):
        webhooks.send_alert(BUSY)
        await settled(metrics)
        assert results(metrics) == {"delivered": 1}


async def test_a_host_name_is_looked_up_in_a_thread_of_its_own() -> None:
    async with receiving() as receiver:
        url = receiver.url.replace("127.0.0.1", "localhost")
        async with sending(target(url)) as (webhooks, metrics):
            webhooks.send_alert(BUSY)
            await receiver.delivered(1)
    assert results(metrics) == {"delivered": 1}
    # aiortc's Opus encoder has the default executor; nobody has used it here.
    assert not [each for each in threading.enumerate() if each.name.startswith("asyncio_")]


async def test_names_and_certificates_that_do_not_fit_are_failures_like_others() -> None:
    once = WebhookRules(tries=1)
    with capture_logs() as logs:
        async with receiving() as receiver:
            for url in (
                f"http://{'x' * 70}.example/hook",
                receiver.url.replace("http:", "https:"),
            ):
                async with sending(target(url), once) as (webhooks, metrics):
                    webhooks.send_alert(BUSY)
                    await settled(metrics)
                assert results(metrics) == {"given_up": 1}
        assert not receiver.deliveries
    assert all(line["why"].startswith("no connection") for line in logs) and len(logs) == 2


async def test_secrets_of_the_url_are_sent_and_not_logged() -> None:
    with capture_logs() as logs:
        async with receiving(500, 404) as receiver:
            url = receiver.url.replace("//", "//user:passw0rd@") + "?token=t0ken"
            to = target(url, SECRET)
            async with sending(to) as (webhooks, _):
                webhooks.send_alert(BUSY)
                _, second = await receiver.delivered(2)
    assert second.headers["authorization"].startswith("Basic ")
    failures = [line for line in logs if line["event"] == "webhook_failed"]
    assert len(failures) == 2 and all(line["event_id"] == second.id for line in failures)
    assert [line["why"] for line in failures] == ["status 500", "status 404"]
    assert failures[0]["again_in_seconds"] is not None and failures[1]["again_in_seconds"] is None
    shown = repr(logs) + repr(to) + repr(webhooks)
    for secret in ("passw0rd", "t0ken", SECRET, SECRET[10:20], "/hook"):
        assert secret not in shown


# ------------------------------------------------------------------------- virtual time


class Script:
    """A receiver that is never asked over a network: answers in turn, then 200."""

    def __init__(self, *answers: Answer | int | None) -> None:
        self.answers = [Answer(a) if isinstance(a, int) else a for a in answers]
        self.at: list[float] = []
        self.names: list[str] = []

    @asynccontextmanager
    async def connect(self, _to: Target, _seconds: float) -> AsyncIterator[Any]:
        yield self.post

    async def post(self, body: bytes, _headers: Mapping[str, str]) -> Answer:
        self.at.append(round(asyncio.get_running_loop().time(), 3))
        self.names.append(json.loads(body)["type"])
        answer = self.answers.pop(0) if self.answers else Answer(200)
        if answer is None:
            await asyncio.get_running_loop().create_future()
        assert answer is not None
        return answer


def story(work: Coroutine[Any, Any, None]) -> None:
    run_virtual(work)


def hooks_to(script: Script, **rules: Any) -> tuple[Webhooks, Metrics]:
    metrics = Metrics()
    to = target("http://x/")
    return Webhooks(to, metrics, SERVER, WebhookRules(**rules), script.connect), metrics


def test_it_waits_ever_longer_or_as_long_as_it_is_asked_to() -> None:
    async def run() -> None:
        patient = Answer(429, retry_after_seconds=7.0)
        rude = Answer(503, retry_after_seconds=86_400.0)
        script = Script(*[500] * 6, patient, rude, patient, 200)
        webhooks, metrics = hooks_to(script)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(webhooks.run())
            webhooks.send("one", {})
            webhooks.send("two", {})
            await asyncio.sleep(1000)
            webhooks.close()
        assert script.at[:6] == [0, 1, 3, 7, 15, 31]
        assert [later - 31 for later in script.at[6:]] == [0, 7, 67, 74]
        assert results(metrics) == {"given_up": 1, "delivered": 1}

    story(run())


def test_when_full_the_oldest_goes_and_is_counted() -> None:
    async def run() -> None:
        script = Script(500)
        webhooks, metrics = hooks_to(script, queue=3)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(webhooks.run())
            webhooks.send("first", {})
            await asyncio.sleep(0.1)  # it is under way, and waits to be tried again
            with capture_logs() as logs:
                for number in range(5):
                    webhooks.send(f"event-{number}", {})
            assert results(metrics) == {"dropped": 2}
            assert [line["event"] for line in logs] == ["webhook_dropped"] * 2
            await asyncio.sleep(10)
            webhooks.close()
        assert script.names == ["first", "first", "event-2", "event-3", "event-4"]
        assert results(metrics) == {"dropped": 2, "delivered": 4}

    story(run())


def test_the_end_flushes_what_waits_at_once() -> None:
    async def run() -> None:
        script = Script(500, 500)
        webhooks, metrics = hooks_to(script)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(webhooks.run())
            for name in ("one", "two", "three"):
                webhooks.send(name, {})
            await asyncio.sleep(0.5)
            webhooks.close()
            webhooks.close()
            webhooks.send("too late", {})
        assert asyncio.get_running_loop().time() == pytest.approx(0.5)
        assert script.names == ["one", "one", "two", "three"]
        assert results(metrics) == {"given_up": 1, "delivered": 2, "dropped": 1}

    story(run())


@pytest.mark.parametrize("begun", [True, False])
def test_the_end_waits_two_seconds_and_no_more(begun: bool) -> None:
    async def run() -> None:
        script = Script(None)
        webhooks, metrics = hooks_to(script)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(webhooks.run())
            webhooks.send("one", {})
            webhooks.send("two", {})
            if begun:
                await asyncio.sleep(3)
            webhooks.close()
        assert asyncio.get_running_loop().time() == pytest.approx(5 if begun else 2)
        assert script.names == ["one"] and results(metrics) == {"dropped": 2}

    story(run())


def test_without_events_the_end_takes_no_time() -> None:
    async def run() -> None:
        webhooks, metrics = hooks_to(Script())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(webhooks.run())
            await asyncio.sleep(3)
            webhooks.close()
        assert asyncio.get_running_loop().time() == pytest.approx(3)
        assert results(metrics) == {}

    story(run())


# ------------------------------------------------------------------------- pure decisions


def test_the_example_of_the_specification() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_which_answers_mean_what() -> None:
    assert all(Answer(status).delivered for status in (200, 201, 204, 299))
    assert not any(Answer(status).delivered for status in (0, 199, 300, 404, 500))
    assert all(Answer(status).may_pass for status in (0, 429, 500, 502, 599))
    assert not any(Answer(status).may_pass for status in (301, 400, 404, 408, 410))


def test_retry_after_in_seconds_or_as_a_date() -> None:
    now = datetime(2026, 8, 2, 10, 0, tzinfo=UTC)
    assert retry_after_seconds("120", now) == 120
    assert retry_after_seconds(format_datetime(now + timedelta(seconds=90), usegmt=True), now) == 90
    assert retry_after_seconds("Sun, 02 Aug 2026 10:00:30", now) == 30
    assert retry_after_seconds(format_datetime(now - timedelta(days=1), usegmt=True), now) == 0
    assert WebhookRules().wait_seconds(1, retry_after_seconds("9" * 5000, now)) == 60
    for nonsense in (None, "", "soon", "-1", "1.5", "²", "Mon, 99999999999999999999 Jan 2026"):
        assert retry_after_seconds(nonsense, now) is None


# ----------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "url",
    ["hook", "//host/hook", "ftp://host/", "http://", "http:///hook", "http://h:99999/", " ",
     "http://h:port/", "http://[::1", "https://passw0rd@", "http://h/a b", "mailto:a@b.example",
     "http://h:0/"],
)  # fmt: skip
async def test_a_wrong_url_ends_the_start_and_is_not_repeated(url: str) -> None:
    admin = {"alert_webhook": url}
    settings = Settings(engines="fake", server={"host": "127.0.0.1", "port": 0}, admin=admin)
    with pytest.raises(ConfigError, match=r"admin\.alert_webhook must be a URL") as caught:
        async with running_server(settings):
            pass
    assert "passw0rd" not in str(caught.value)


@pytest.mark.parametrize(
    "secret",
    ["topsecret", "whsec_", "whsec_topsecret", SECRET.removeprefix("whsec_"), "whsec_é",
     "whsec_" + base64.b64encode(bytes(23)).decode(),
     "whsec_" + base64.b64encode(bytes(65)).decode()],
)  # fmt: skip
def test_a_wrong_secret_is_told_and_not_repeated(secret: str) -> None:
    with pytest.raises(ConfigError, match=r"admin\.webhook_secret must be whsec_") as caught:
        target("https://host/", secret)
    assert "topsecret" not in str(caught.value)


def test_without_a_url_there_is_no_target() -> None:
    assert webhook_target(AdminSettings()) is None
    assert webhook_target(AdminSettings(webhook_secret="anything")) is None


# ---------------------------------------------------------------------- a whole server


def admin_of(receiver: Receiver) -> dict[str, str]:
    return {"alert_webhook": receiver.url, "webhook_secret": SECRET}


async def test_a_full_pool_is_told_and_that_it_is_over() -> None:
    """The alert is real: a caller takes the only slot, and hangs up."""
    async with (
        asyncio.timeout(50),
        receiving() as receiver,
        serving(pool={"slots": 1}, admin=admin_of(receiver)) as server,
    ):
        pool = server.registry.pool
        assert pool is not None
        alerts = pool.supervisor.governor.alerts
        alerts._book.rules = AlertRules(utilisation_seconds=0.0, clear_seconds=0.0)
        async with calling(server.url) as caller:
            (raised,) = await receiver.delivered(1)
            await caller.hang_up()
        _, cleared = await receiver.delivered(2)
    assert raised.is_signed_with(SECRET) and cleared.is_signed_with(SECRET)
    assert [raised.json["type"], cleared.json["type"]] == ["alert.raised", "alert.cleared"]
    expected = {"name": "pool_utilisation", "severity": "warning",
                "text": "1 of 1 slots are leased (100%)"}  # fmt: skip
    assert raised.json["data"] == cleared.json["data"] == {"alert": expected}
    assert raised.json["server"]["url"] == server.url
    assert results(server.metrics) == {"delivered": 2}


async def test_a_receiver_that_never_answers_does_not_keep_the_server_from_ending() -> None:
    async with asyncio.timeout(30), receiving(*[None] * 9) as receiver:  # six tries take a minute
        async with serving(admin=admin_of(receiver)) as server:
            pool = server.registry.pool
            assert pool is not None
            pool.supervisor.governor.alerts.on_alert(BUSY)
            await receiver.delivered(1)
        assert results(server.metrics) == {"dropped": 1}


async def test_without_a_webhook_nothing_is_sent() -> None:
    async with asyncio.timeout(30), serving() as server:
        pool = server.registry.pool
        assert pool is not None
        pool.supervisor.governor.alerts.on_alert(BUSY)
        assert results(server.metrics) == {}
        assert not any(task.get_name() == "webhooks" for task in asyncio.all_tasks())
