"""The composition root: settings in, a running server out."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web

from signaling.admin import ADMIN, page_address
from signaling.app import build_app
from signaling.collector import Collector
from signaling.event_loop import loop_factory
from signaling.server_state import ServerState
from signaling.voice_metrics import watch
from signaling.webhook import Webhooks, webhook_target
from voice_rtc.call.registry import CallRegistry
from voice_rtc.config import Loaded, Settings
from voice_rtc.core.collection import CollectionRules
from voice_rtc.engines.base import EngineSet
from voice_rtc.engines.catalog import close_engines, load_engines
from voice_rtc.errors import ConfigError, EngineError
from voice_rtc.media.selftest import MediaPath, PathChooser, path_by_version, tested_path
from voice_rtc.metrics import Metrics
from voice_rtc.pool.gpu import GpuSource, read_gpus
from voice_rtc.pool.memory import MemorySource, read_machine

log = structlog.get_logger("voice_rtc.server")

EngineLoader = Callable[[Settings, Callable[[str], None]], Awaitable[EngineSet]]


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    url: str
    settings: Settings
    registry: CallRegistry
    state: ServerState
    metrics: Metrics
    collector: Collector
    pool_page: str
    """Address of the pool page, with the admin token where that was made for this start."""


def serve(loaded: Loaded) -> None:
    """Run until SIGINT or SIGTERM, then drain. Raises ConfigError when it cannot start."""
    factory = loop_factory(loaded.settings.server.event_loop)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(loaded.settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running_server(settings, choose_path=tested_path) as server:
        log.info("listening", url=server.url, event_loop=type(loop).__module__.partition(".")[0])
        log.info("pool_page", address=server.pool_page)
        await _either(server.state.settled.wait(), stop.wait())
        server.collector.settle()
        await stop.wait()
        # A second signal ends the draining at once.
        stop.clear()
        async with asyncio.TaskGroup() as tasks:
            drain = tasks.create_task(server.registry.drain(settings.server.drain_seconds))
            impatient = tasks.create_task(_cancel_on(stop, drain))
            await asyncio.wait([drain])
            impatient.cancel()


async def _either(*work: Coroutine[Any, Any, Any]) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(each) for each in work]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()


async def _cancel_on(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
    await stop.wait()
    task.cancel()


@asynccontextmanager
async def running_server(
    settings: Settings,
    loader: EngineLoader = load_engines,
    gpus: GpuSource = read_gpus,
    memory: MemorySource = read_machine,
    choose_path: PathChooser = path_by_version,
) -> AsyncIterator[Server]:
    """The whole server inside a block; engines load in the background. Raises ConfigError.

    ``choose_path`` decides which way audio takes: `tested_path` tries it first, a second or two in
    which HTTP answers already.
    """
    target = webhook_target(settings.admin)
    metrics = Metrics()
    state = ServerState()
    registry = CallRegistry(settings, metrics)
    server = settings.server
    rules = CollectionRules(
        server.collect_seconds, server.collect_objects, most_calls=server.collect_calls
    )
    collector = Collector(rules, registry, metrics)
    registry.on_call_ended = collector.call_ended
    app = build_app(settings, registry, metrics, state)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        # Both outside the group: their errors are for the operator.
        url = await _listen(runner, settings)
        state.media = registry.media_path = await choose_path(settings.media, settings.limits)
        _tell_media_path(state.media, metrics)
        webhooks = Webhooks(target, metrics, url) if target is not None else None
        async with asyncio.TaskGroup() as tasks, registry.running():
            if webhooks is not None:
                tasks.create_task(webhooks.run(), name="webhooks")
            load = _load(settings, loader, registry, state, gpus, memory, webhooks, metrics)
            loading = tasks.create_task(load, name="load-engines")
            try:
                page = page_address(url, settings.admin, app[ADMIN].token)
                with collector.running():
                    yield Server(url, settings, registry, state, metrics, collector, page)
            finally:
                await registry.drain(0.0)
                loading.cancel()  # and with it the pool, which calls need to their end
                if webhooks is not None:
                    webhooks.close()
    finally:
        await runner.cleanup()
        if state.engines is not None:
            await close_engines(state.engines)


def _tell_media_path(chosen: MediaPath, metrics: Metrics) -> None:
    metrics.tell_media_path(chosen.path)
    if chosen.reason:
        log.warning("media_path_stock", reason=chosen.reason)
    else:
        log.info("media_path", path=chosen.path)


async def _listen(runner: web.AppRunner, settings: Settings) -> str:
    server = settings.server
    context = _tls(settings)
    site = web.TCPSite(runner, server.host, server.port, ssl_context=context)
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {server.host}:{server.port}: {error.strerror or error}; "
            "choose another with --port"
        ) from None
    port = runner.addresses[0][1]
    host = "localhost" if server.host in ("0.0.0.0", "::", "") else server.host
    return f"{'https' if context else 'http'}://{host}:{port}"


def _tls(settings: Settings) -> ssl.SSLContext | None:
    server = settings.server
    if server.tls_certificate is None and server.tls_key is None:
        return None
    if server.tls_certificate is None or server.tls_key is None:
        raise ConfigError("server.tls_certificate and server.tls_key belong together")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(server.tls_certificate, server.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the TLS certificate or key cannot be used: {error}") from None
    return context


async def _load(
    settings: Settings,
    loader: EngineLoader,
    registry: CallRegistry,
    state: ServerState,
    gpus: GpuSource,
    memory: MemorySource,
    webhooks: Webhooks | None,
    metrics: Metrics,
) -> None:
    """Load the engines and keep the pool open until cancelled."""
    try:
        engines = await loader(settings, state.report)
    except EngineError as error:
        # The server stays up to say so: an operator sees it on /readyz and on the page.
        state.failed(str(error))
        registry.refuse(error)
        log.error("engines_failed", code=error.code, error=str(error))
        return
    state.engines = engines  # to be closed, whatever comes
    watch(engines.tts, metrics)
    async with registry.open(engines, gpus, memory) as pool:
        if webhooks is not None:
            pool.supervisor.governor.alerts.on_alert = webhooks.send_alert
        state.ready(engines)
        log.info("ready", slots=pool.statistics().slots, mode=pool.mode)
        await asyncio.get_running_loop().create_future()
