"""What the comparison of layer-wise with whole-prompt transfer found, as data and as a table. Pure."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.paired import Machine, Paired, Verdict

LONG_PROMPT_TOKENS = 4096
MOST_EXPOSED = 0.35
SHORT_PROMPT_TOKENS = 128
MOST_SLOWDOWN = 1.05


class Trial(BaseModel):
    """One prompt through one cluster. Seconds from the request, or as the decode worker measured them."""

    model_config = ConfigDict(frozen=True)

    time_to_first_token_s: float
    second_token_s: float
    """To the second token: the first that needed the transferred KV."""
    first_gap_s: float
    """Between the first token and the second, at the client: exposed transfer and one decode step."""
    end_to_end_s: float
    transfer_s: float
    """First layer landed to the last."""
    exposed_s: float
    """First token known at the decode worker to all layers landed and verified."""
    exposed_at_prefill_s: float
    """End of compute to the last write's completion."""
    landed_bytes: float


class LengthReport(BaseModel):
    """All rounds of one prompt length on one link. `ours` is layer-wise, `theirs` whole-prompt."""

    model_config = ConfigDict(frozen=True)

    link: str
    prompt_tokens: int
    exposed_s: Paired
    exposed_at_prefill_s: Paired
    time_to_first_token_s: Paired
    second_token_s: Paired
    first_gap_s: Paired
    end_to_end_s: Paired
    layerwise: list[Trial]
    whole_prompt: list[Trial]

    @classmethod
    def of(cls, link: str, prompt_tokens: int, layerwise: Sequence[Trial], whole_prompt: Sequence[Trial]) -> "LengthReport":
        def paired(name: str) -> Paired:
            return Paired.of([getattr(trial, name) for trial in layerwise], [getattr(trial, name) for trial in whole_prompt])

        return cls(
            link=link,
            prompt_tokens=prompt_tokens,
            exposed_s=paired("exposed_s"),
            exposed_at_prefill_s=paired("exposed_at_prefill_s"),
            time_to_first_token_s=paired("time_to_first_token_s"),
            second_token_s=paired("second_token_s"),
            first_gap_s=paired("first_gap_s"),
            end_to_end_s=paired("end_to_end_s"),
            layerwise=list(layerwise),
            whole_prompt=list(whole_prompt),
        )

    @property
    def whole_prompt_bytes_per_second(self) -> float:
        """How fast the link carried KV that had it for itself: what a slowed link really gave."""
        trials = self.whole_prompt
        return sum(trial.landed_bytes for trial in trials) / max(1e-9, sum(trial.exposed_s for trial in trials))


class LayerwiseReport(BaseModel):
    """The whole comparison."""

    model_config = ConfigDict(frozen=True)

    machine: Machine
    dtype: str
    slow_mbit: float
    output_tokens: int
    lengths: list[LengthReport]

    def verdicts(self) -> list[Verdict]:
        """The targets that this run says something about."""
        found = []
        for report in self.lengths:
            where = f"{report.link} link, {report.prompt_tokens} tokens"
            if report.link == "slow" and report.prompt_tokens == LONG_PROMPT_TOKENS:
                what = f"{where}: exposed time, layer-wise / whole prompt"
                found.append(Verdict(what=what, measured=report.exposed_s.ratio, at_most=MOST_EXPOSED))
            if report.prompt_tokens == SHORT_PROMPT_TOKENS:
                what = f"{where}: time to the second token, layer-wise / whole prompt"
                found.append(Verdict(what=what, measured=report.second_token_s.ratio, at_most=MOST_SLOWDOWN))
        return found


def render(report: LayerwiseReport) -> RenderableType:
    """For a terminal."""
    verdicts = (Text(str(verdict)) for verdict in report.verdicts())
    exposed = f"exposed KV transfer, {report.dtype}, median ms: layer-wise (L) and whole-prompt (W)"
    slow = f"; the slow link has {report.slow_mbit:g} Mbit/s" if any(one.link == "slow" for one in report.lengths) else ""
    waiting = "what the client waits for, median ms; in brackets the smallest and largest ratio of a round"
    return Group(
        Text(exposed + slow, style="italic"), _exposed(report), Text(waiting, style="italic"), _waiting(report), *verdicts
    )


def _exposed(report: LayerwiseReport) -> Table:
    """What the two worker kinds measured."""
    table = _table(("KV, MB", "W, MB/s", "L", "W", "L/W", "L/W at prefill"))
    for length in report.lengths:
        table.add_row(
            length.link,
            str(length.prompt_tokens),
            f"{length.whole_prompt[0].landed_bytes / 1e6:.1f}",
            f"{length.whole_prompt_bytes_per_second / 1e6:,.0f}",
            *_medians(length.exposed_s),
            _ratio(length.exposed_at_prefill_s),
        )
    return table


def _waiting(report: LayerwiseReport) -> Table:
    """What the client saw."""
    columns = ("1st token L/W", "1st to 2nd L", "W", "2nd token L", "W", "L/W", "last token L/W")
    table = _table(columns)
    for length in report.lengths:
        table.add_row(
            length.link,
            str(length.prompt_tokens),
            _ratio(length.time_to_first_token_s),
            *_medians(length.first_gap_s)[:2],
            *_medians(length.second_token_s),
            _ratio(length.end_to_end_s),
        )
    return table


def _table(columns: Sequence[str]) -> Table:
    table = Table()
    table.add_column("link")
    table.add_column("tokens", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _medians(paired: Paired) -> tuple[str, str, str]:
    return f"{paired.our_median * 1000:,.1f}", f"{paired.their_median * 1000:,.1f}", _ratio(paired)


def _ratio(paired: Paired) -> str:
    if paired.ratio is None:
        return "-"
    return f"{paired.ratio:.2f} ({paired.smallest_ratio:.2f}-{paired.largest_ratio:.2f})"
