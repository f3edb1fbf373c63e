"""Every query of every dashboard, and every rule, on a real Prometheus that scrapes a real cluster under load."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from observed_cluster import Observed, observed_cluster, until

from k8s.config import SloConfig
from k8s.dashboards import dashboards
from k8s.rules import groups

CHECKER = Path(__file__).parents[3] / "shared" / "tools" / "check_dashboard.py"
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
SLO = SloConfig()


@pytest.fixture
async def observed(tmp_path: Path) -> AsyncIterator[Observed]:
    async with observed_cluster(tmp_path, SLO) as running:
        await until(lambda: shows_speed(running))
        yield running
        assert running.statuses.keys() == {200}


async def shows_speed(observed: Observed) -> bool:
    """The last of what every dashboard asks for: seconds of several scrapes of every target."""
    found = await observed.get("query?query=rate(serval_kv_transfer_bytes_total[30s])>0")
    rules = await observed.get("query?query=serval:busy:share")
    return len(found["result"]) == 2 and len(rules["result"]) == 2


async def test_every_panel_has_data_and_every_rule_is_computed(observed: Observed) -> None:
    expected = sum(len(group["rules"]) for group in groups(SLO))

    async def are_computed() -> bool:
        return not any(rule["health"] == "unknown" for rule in await observed.rules())

    await until(are_computed)
    found = await observed.rules()
    assert len(found) == expected
    assert [(rule["name"], rule["lastError"]) for rule in found if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in found if rule.get("state") == "firing"] == []

    pytest.importorskip("grafana_foundation_sdk", reason="the dashboards' checker needs it")
    if not CHECKER.is_file():
        pytest.skip("the dashboards' checker is not beside the repository")
    for board in dashboards(SLO):
        file = observed.folder / f"{board.uid}.json"
        file.write_text(json.dumps(board.to_json()))
        check = await asyncio.create_subprocess_exec(
            sys.executable, str(CHECKER), str(file), observed.prometheus, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(check.communicate(), 60)
        assert check.returncode == 0, output.decode()
        assert b" 0 findings" in output
