"""A door is used only where the kernel takes a pin back from a process that dies."""

from pathlib import Path

import pytest

from bellwire.config.agent.panel import PanelSettings
from bellwire.hardware.panel.door_lock import why_no_door
from bellwire.hardware.panel.panel import Panel
from bellwire.hardware.panel.simulated_pins import SimulatedPins

PI_4, PI_5 = b"raspberrypi,4-model-b\0brcm,bcm2711\0", b"raspberrypi,5-model-b\0brcm,bcm2712\0"
SETTINGS = PanelSettings.model_validate({"door": {"pin": 27}, "ringer": {"pin": 17}})


def machine(root: Path, model: bytes | None, **drivers: str) -> Path:
    """A machine whose kernel has these drivers, each with what its parameter reads."""
    for driver, reads in drivers.items():
        file = root / f"sys/module/{driver}/parameters/persist_gpio_outputs"
        file.parent.mkdir(parents=True)
        file.write_text(f"{reads}\n")
    if model is not None:
        (root / "proc/device-tree").mkdir(parents=True)
        (root / "proc/device-tree/compatible").write_bytes(model)
    return root


def test_a_kernel_that_keeps_levels_is_told_what_to_do_about_it(tmp_path: Path) -> None:
    reason = why_no_door(machine(tmp_path, PI_4, pinctrl_bcm2835="Y"))
    assert reason is not None
    assert "dtparam=strict_gpiod" in reason
    assert "restart the Pi" in reason


@pytest.mark.parametrize(
    ("model", "drivers"),
    [
        (None, {}),
        (PI_4, {}),
        (PI_4, {"pinctrl_bcm2835": "N"}),
        (PI_4, {"pinctrl_bcm2835": "N", "pinctrl_rp1": "Y"}),
        (PI_5, {"pinctrl_bcm2835": "Y", "pinctrl_rp1": "N"}),
    ],
)
def test_every_other_kernel_may_have_a_door(
    tmp_path: Path, model: bytes | None, drivers: dict[str, str]
) -> None:
    assert why_no_door(machine(tmp_path, model, **drivers)) is None


def test_a_pi_5_goes_by_the_driver_of_its_own_header(tmp_path: Path) -> None:
    found = machine(tmp_path, PI_5, pinctrl_bcm2835="N", pinctrl_rp1="Y")
    assert "pinctrl_rp1" in (why_no_door(found) or "")


def test_a_panel_does_not_even_claim_the_door_there_and_all_else_works(tmp_path: Path) -> None:
    with SimulatedPins(SETTINGS) as pins:
        panel = Panel(SETTINGS, pin_factory=pins, root=machine(tmp_path, PI_4, pinctrl_bcm2835="Y"))
        assert panel.door is None
        assert "strict_gpiod" in (panel.door_fault or "")
        assert pins.pin(27).function == "input"
        assert panel.ringer is not None
        panel.close()
        with_door = Panel(SETTINGS, pin_factory=pins)
        assert with_door.door is not None
        assert with_door.door_fault is None
        with_door.close()
