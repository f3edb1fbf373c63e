"""Grafana's JSON of a dashboard: rows of panels, laid out from left to right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

COLUMNS = 24
HEIGHT = 8
SCHEMA = 39
"""Of Grafana 11."""

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Target:
    """One query of a panel, and what its lines are called."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """`unit` is Grafana's: s, reqps, Bps, percentunit, currencyUSD, short."""

    title: str
    unit: str
    targets: Sequence[Target]
    about: str = ""
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    stacked: bool = False


@dataclass(frozen=True)
class Variable:
    """A choice at the top, of a label's values."""

    name: str
    query: str


@dataclass(frozen=True)
class Dashboard:
    """Rows by their titles."""

    uid: str
    title: str
    rows: Sequence[tuple[str, Sequence[Panel]]]
    variables: Sequence[Variable] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "uid": self.uid,
            "title": self.title,
            "tags": ["serval"],
            "timezone": "browser",
            "editable": False,
            "schemaVersion": SCHEMA,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "templating": {"list": [_datasource(), *map(_variable, self.variables)]},
            "panels": self._panels(),
        }

    def _panels(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        top = 0
        for title, panels in self.rows:
            row = {"id": len(found) + 1, "type": "row", "title": title, "collapsed": False}
            found.append(row | {"gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": top}})
            top += 1
            left = 0
            for panel in panels:
                if left + panel.width > COLUMNS:
                    left, top = 0, top + HEIGHT
                found.append(_panel(panel, len(found) + 1, {"h": HEIGHT, "w": panel.width, "x": left, "y": top}))
                left += panel.width
            top += HEIGHT
        return found


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": target.expression, "legendFormat": target.legend}
        for index, target in enumerate(panel.targets)
    ]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "timeseries":
        stacking = {"stacking": {"mode": "normal"}} if panel.stacked else {}
        defaults["custom"] = {"fillOpacity": 30 if panel.stacked else 5, "showPoints": "never"} | stacking
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets,
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "type": "query",
        "query": variable.query,
        "datasource": DATASOURCE,
        "includeAll": True,
        "multi": True,
        "refresh": 2,
    }
