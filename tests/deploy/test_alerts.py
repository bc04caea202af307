"""The alert rules that operators load into Prometheus: each asks for a metric that there is."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # its stubs are not worth a dependency

from bellwire.push.metrics import Metrics

ALERTS = Path(__file__).parents[2] / "deploy/alerts.yml"
OF_DEVICES = {"bellwire_device_online", "bellwire_device_faults"}
"""What `/metrics/devices` tells of each."""


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(ALERTS.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def test_each_rule_asks_for_metrics_that_a_relay_has_by_labels_that_they_have() -> None:
    metrics = Metrics()
    metrics.deliveries.labels("mqtt", "failed")
    metrics.refused.labels("reason")
    metrics.push_app_fault.labels("fcm", "app")
    page = metrics.exposition().decode()
    for rule in rules():
        asked = set(re.findall(r"bellwire_\w+", rule["expr"]))
        for name in asked - OF_DEVICES:
            assert re.search(rf"^{name}[ {{]", page, re.M), f"{rule['alert']}: {name}"
        assert asked or rule["expr"].startswith("up{")


def test_each_rule_says_what_is_wrong_and_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) == 10
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "action"}, rule["alert"]


def test_prometheus_takes_the_rules_and_wakes_somebody_for_a_door_that_is_offline(
    tmp_path: Path,
) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    case = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {
                        "series": f'bellwire_device_online{{device_id="{device}",identity="lobby"}}',
                        "values": values,
                    }
                    for device, values in (("gate", "1 1 0x20"), ("yard", "1x22"))
                ],
                "alert_rule_test": [
                    {"eval_time": "11m", "alertname": "BellwireDeviceOffline", "exp_alerts": []},
                    {
                        "eval_time": "13m",
                        "alertname": "BellwireDeviceOffline",
                        "exp_alerts": [
                            {
                                "exp_labels": {
                                    "device_id": "gate",
                                    "identity": "lobby",
                                    "severity": "warning",
                                },
                                "exp_annotations": _annotations("BellwireDeviceOffline"),
                            }
                        ],
                    },
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(case))
    for arguments in (("check", "rules", ALERTS), ("test", "rules", file)):
        answer = subprocess.run(  # noqa: S603
            [promtool, *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr


def _annotations(alert: str) -> dict[str, str]:
    (found,) = (rule["annotations"] for rule in rules() if rule["alert"] == alert)
    filled = {"device_id": "gate", "identity": "lobby"}
    return {
        name: re.sub(r"{{ \$labels\.(\w+) }}", lambda label: filled[label[1]], text)
        for name, text in found.items()
    }
