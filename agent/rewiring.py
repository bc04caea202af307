"""The panel follows the settings: another wiring is built when the settings in force say so."""

from collections.abc import Callable
from pathlib import Path

import structlog
from gpiozero import Factory

from agent.live_settings import LiveSettings, wiring_of
from config.agent import ConfigurableSettings
from config.panel import PanelSettings
from hardware.panel import Panel, PanelError

log = structlog.get_logger(__name__)

ReportFault = Callable[[str, str | None], None]


def panel_of(
    live: LiveSettings,
    fallback: PanelSettings,
    report_fault: ReportFault,
    *,
    pin_factory: Factory | None = None,
    root: Path | None = None,
) -> Panel:
    """A panel that is wired as the settings in force say, now and whenever they change. Where a pin of
    theirs cannot be had it stays as it was, at the start as the device's own file says (`fallback`),
    and the fault is reported: a device must not be lost to a layer.

    Raises:
        PanelError: a pin of the device's own file cannot be had.
    """
    try:
        panel = Panel(live.now.panel, pin_factory=pin_factory, root=root)
    except PanelError as error:
        if wiring_of(live.now.panel) == wiring_of(fallback):
            raise
        log.error("panel wired as the device's own file says", error=str(error))
        report_fault("panel", str(error))
        panel = Panel(fallback, pin_factory=pin_factory, root=root)

    def follow(before: ConfigurableSettings, now: ConfigurableSettings) -> None:
        if wiring_of(before.panel) == wiring_of(now.panel):
            return
        try:
            panel.rewire(now.panel)
        except PanelError as error:
            log.error("panel not rewired", error=str(error))
            report_fault("panel", str(error))
        else:
            report_fault("panel", None)

    live.watch(follow)
    return panel
