"""What became of everybody whom a trial asked: answers beside an undisturbed engine's, outcomes beside what clients saw."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from matrix_client import Client
from matrix_cluster import MatrixCluster
from matrix_expected import Expected
from matrix_result import Trial


@dataclass
class Asked:
    """The clients of one trial."""

    clients: list[Client] = field(default_factory=list)
    fillers: list[Client] = field(default_factory=list)
    """Who take up places, so that the others wait."""
    hits: list[Client] = field(default_factory=list)
    """Of the clients: who was in the state at the process that was hit."""
    again: dict[Client, Client] = field(default_factory=dict)
    """Who failed with its router → the same question to the other one."""
    after: list[Client] = field(default_factory=list)

    @property
    def everybody(self) -> list[Client]:
        return [*self.clients, *self.fillers, *self.again.values(), *self.after]


async def judge(trial: Trial, asked: Asked, expected: Expected, hit_at: float) -> None:
    """Notes how the hits ended and when they went on; and in `trial.wrong` what was not as promised."""
    first = [*asked.clients, *asked.fillers]
    answers = await expected.of([client.ask for client in first])
    for client, wanted in zip(first, answers, strict=True):
        is_hit = client in asked.hits
        last = asked.again.get(client, client)
        who = f"{'hit' if is_hit else 'bystander'} of {client.prompt_tokens} tokens"
        if is_hit:
            before = sum(at <= hit_at for at in client.heard_at)
            if not trial.cell.tokens_fit(before) or client.ended_at <= hit_at:
                trial.wrong.append(f"{who}: it had gone on before the fault ({before} messages)")
            trial.outcomes[_outcome(client)] = trial.outcomes.get(_outcome(client), 0) + 1
            trial.ended_s.append(round(client.ended_at - hit_at, 4))
            if (heard := last.first_heard_after(hit_at)) is not None:
                trial.recover_s.append(round(heard - hit_at, 4))
        if last.finish is None:
            trial.wrong.append(f"{who}: {last.error}")
        if client.error is not None and client.error.startswith("silent"):
            trial.wrong.append(f"{who}: {client.error}")
        for one in {client, last}:
            trial.wrong += [f"{who}: {wrong}" for wrong in await expected.differences(one, wanted)]
    trial.wrong += [f"leaked: {leak}" for leak in trial.leaked]


async def judge_counts(
    trial: Trial, asked: Asked, cluster: MatrixCluster, counted: Mapping[str, tuple[int, dict[str, int]]]
) -> None:
    """Every request that a router accepted and lived to end is in exactly one outcome. `counted`: by router, its process before
    the trial, and the requests that it had ended by then."""
    for router, (pid, before) in counted.items():
        if cluster.processes[router].pid != pid:
            continue
        theirs = [client for client in asked.everybody if client.front.router == router]
        after = await cluster.outcomes(router)
        ended = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
        trial.evidence[f"outcomes of {router}"] = ended
        finished = sum(client.finish is not None for client in theirs)
        if sum(ended.values()) != len(theirs) or ended.get("length", 0) < finished:
            trial.wrong.append(f"{router} counted {ended} for {len(theirs)} requests, {finished} of which finished")


def _outcome(client: Client) -> str:
    """For the report: without what differs from run to run."""
    if client.finish is not None:
        return "answered"
    assert client.error is not None
    return "error: " + client.error.partition(":")[0]
