"""One scrape of one process's /metrics, to be asked by name and labels."""

from collections import defaultdict
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Samples:
    rows: tuple[tuple[str, dict[str, str], float], ...]

    @classmethod
    def parse(cls, text: str) -> "Samples":
        return cls(
            tuple(
                (sample.name, sample.labels, sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            )
        )

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples `name` that carry these labels; 0 where there is none."""
        return sum(value for row, found, value in self.rows if row == name and labels.items() <= found.items())

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Samples `name` summed by the value of `label`."""
        sums: dict[str, float] = defaultdict(float)
        for row, found, value in self.rows:
            if row == name:
                sums[found[label]] += value
        return dict(sums)
