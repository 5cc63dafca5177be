"""The files in ops/: rules and panels name metrics that there are, and promtool accepts them."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"
OF_PROMETHEUS = {"up"}
SELECTED = re.compile(r"\b([a-z][\w:]*)\{")
SELECTOR = re.compile(r"\b([a-z][\w:]*)\{([^{}]*)\}")
MATCHER = re.compile(r'(\w+)(=|!=|=~|!~)"([^"]*)"')
# Prometheus adds them to what it scrapes: name those that your configuration adds.
OF_TARGETS = {"service", "job", "instance"}
RECORDED = re.compile(r"^ +- record: (\S+)$", re.MULTILINE)
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "summary": ("_count", "_sum")}


@pytest.fixture(scope="session")
async def exposition(client: AsyncClient) -> str:
    await client.get("/health/ready")
    return (await client.get("/metrics")).text


@pytest.fixture(scope="session")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("needs promtool (Debian's package prometheus)")
    return found


def metrics(exposition: str) -> set[str]:
    return {
        f"{name}{suffix}"
        for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", exposition, re.MULTILINE)
        for suffix in SUFFIXES.get(kind, ("",))
    }


def expressions(node: Any) -> list[str]:
    if isinstance(node, list):
        return [found for part in node for found in expressions(part)]
    if not isinstance(node, dict):
        return []
    own = [node["expr"]] if isinstance(node.get("expr"), str) else []
    return own + [found for part in node.values() for found in expressions(part)]


def test_every_rule_names_an_existing_metric(exposition: str) -> None:
    rules = (OPS / "alerts.yml").read_text()
    named = set(SELECTED.findall(rules)) - OF_PROMETHEUS - set(RECORDED.findall(rules))
    assert len(named) > 10
    assert named - metrics(exposition) == set()


def test_every_rule_selects_by_existing_labels(exposition: str) -> None:
    """A rule whose label or bucket does not exist would be silent for ever."""
    families = text_string_to_metric_families(exposition)
    samples = [sample for family in families for sample in family.samples]
    labels = {(sample.name, label) for sample in samples for label in sample.labels}
    values = {(sample.name, *pair) for sample in samples for pair in sample.labels.items()}
    selectors = SELECTOR.findall((OPS / "alerts.yml").read_text())
    checked = [
        (metric, label, operator, value)
        for metric, matchers in selectors
        for label, operator, value in MATCHER.findall(matchers)
        if label not in OF_TARGETS
    ]
    assert checked
    assert [each for each in checked if each[:2] not in labels] == []
    assert [
        (m, n, v) for m, n, operator, v in checked if operator == "=" and (m, n, v) not in values
    ] == []


def test_every_panel_names_an_existing_metric(exposition: str) -> None:
    queries = expressions(json.loads((OPS / "dashboard.json").read_text()))
    assert [query for query in queries if not SELECTED.search(query)] == []
    named = {name for query in queries for name in SELECTED.findall(query)}
    assert len(named) > 20
    assert named - metrics(exposition) == set()


def test_every_alert_leads_to_its_section() -> None:
    alerts = re.findall(r"^ +- alert: (\w+)$", (OPS / "alerts.yml").read_text(), re.MULTILINE)
    runbooks = re.findall(r"^ +runbook: (\S+)$", (OPS / "alerts.yml").read_text(), re.MULTILINE)
    assert runbooks == [f"docs/operations.md#{alert.lower()}" for alert in alerts]
    page = (ROOT / "docs" / "operations.md").read_text().partition("\n## Alerts\n")[2]
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == alerts


def test_every_alert_is_seen_to_fire() -> None:
    alerts = re.findall(r"^ +- alert: (\w+)$", (OPS / "alerts.yml").read_text(), re.MULTILINE)
    tried = re.findall(r'\{alertname="(\w+)"\}', (OPS / "alerts_test.yml").read_text())
    assert sorted(tried) == sorted(alerts)


@pytest.mark.parametrize("command", ["check rules alerts.yml", "test rules alerts_test.yml"])
def test_promtool_accepts_the_rules(promtool: str, command: str) -> None:
    done = subprocess.run(
        [promtool, *command.split()], cwd=OPS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", ["operations.md", "tracing.md"])
def test_promtool_accepts_the_configuration_of_a_page(
    promtool: str, page: str, tmp_path: Path
) -> None:
    blocks = YAML.findall((ROOT / "docs" / page).read_text())
    (configuration,) = [block for block in blocks if "scrape_configs:" in block]
    file = tmp_path / "prometheus.yml"
    file.write_text(configuration)
    command = [promtool, "check", "config", "--syntax-only", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_metrics(promtool: str, exposition: str) -> None:
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=exposition,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
