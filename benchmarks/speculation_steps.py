"""What speculation is worth to one user, where a few percent count: two engines in one process answer the same prompts, a step of
one and then a step of the other.

On a machine whose memory others use too, one answer takes up to a quarter longer than the next; answers in turns
(benchmarks.speculation) tell a factor, not 3 %. Steps in turns lie 30 milliseconds apart: what the machine does touches both.
Prefill does not count, nothing moves, and both sides must give the same tokens.

    python -m benchmarks.speculation_steps --rounds 8 --json FILE
"""

import time
from pathlib import Path
from typing import Annotated

import typer
from tokenizers import Tokenizer

from benchmarks.cluster import read_settings
from benchmarks.errors import NotMeasured
from benchmarks.measurement import JsonFile, Measurement, ModelFolder, Settings
from benchmarks.paired import Paired, order
from benchmarks.speculation_report import SpeculationReport, TaskReport, render
from benchmarks.speculation_tasks import TASKS, Task
from benchmarks.terminal import progress_bar
from engine.config import EngineConfig
from engine.engine import Engine
from engine.sequence import Sequence
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics


class OtherAnswer(NotMeasured):
    """The two sides did not give the same tokens."""


def run(
    rounds: Annotated[int, typer.Option(min=1, help="Answers to each task, after one that warms up.")] = 8,
    speculation: Annotated[str, typer.Option(help="Who guesses: ngram, or mtp where the model has the head.")] = "ngram",
    task: Annotated[list[str] | None, typer.Option(help="A task's name. Default: all; may be repeated.")] = None,
    model: ModelFolder = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, on both sides.")] = "bfloat16",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each engine.")] = 1,
    setting: Settings = None,
    seed: Annotated[int, typer.Option(help="Same seed, same draws.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Compare a user's tokens per second with speculation and without, step by step.

    Exit status: 0 when the targets are met, 1 when one is missed, 2 when it could not be measured.
    """
    measurement = Measurement("speculation_steps")
    tasks = [one for one in TASKS if not task or one.name in task]
    if not tasks:
        raise typer.BadParameter(f"--task: none of {', '.join(one.name for one in TASKS)}")
    settings = read_settings(model, [f"engine.dtype={dtype}", f"engine.threads={threads}", *(setting or [])])
    folder, given = Path(settings["model"]), settings["engine"]
    done: list[TaskReport] = []
    with measurement.running(), progress_bar() as bar:
        progress = bar.add_task("steps in turns", total=len(tasks) * (rounds + 1))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ours, theirs = (
            Engine.load(folder, EngineConfig.model_validate(given | {"speculation": name}), Metrics("decode", name))
            for name in (speculation, "off")
        )
        for one in tasks:
            prompt, answers = tokenizer.encode(one.prompt).ids, []
            for number in range(rounds + 1):
                answers.append(_answer(ours, theirs, prompt, one, seed + number))
                bar.advance(progress)
            done.append(_report(one, answers[1:]))
    report = SpeculationReport(
        machine=measurement.machine,
        model=settings["router"]["model"],
        dtype=dtype,
        threads=threads,
        speculation=speculation,
        draft_tokens=given["draft_tokens"],
        tasks=done,
    )
    measurement.end(report, render, json_file)


_Answers = tuple[tuple[Sequence, float], tuple[Sequence, float]]
"""Each side's answer and its decode steps' seconds."""


def _answer(ours: Engine, theirs: Engine, prompt: list[int], task: Task, seed: int) -> _Answers:
    """Raises OtherAnswer."""
    params = SamplingParams(max_tokens=task.max_tokens, ignore_eos=True, temperature=task.temperature, seed=seed)
    engines = {True: ours, False: theirs}
    sequences = {side: Sequence(f"{task.name}-{seed}", prompt, params) for side in engines}
    for side, engine in engines.items():
        engine.submit(sequences[side])
        while not sequences[side].output:
            engine.step()
    spent, running, turn = {True: 0.0, False: 0.0}, {True, False}, 0
    while running:
        for side in order(turn):
            if side in running:
                started_s = time.perf_counter()
                updates = engines[side].step()
                spent[side] += time.perf_counter() - started_s
                if any(update.finish for update in updates):
                    running.discard(side)
        turn += 1
    for side, engine in engines.items():
        engine.release(sequences[side])
    if sequences[True].output != sequences[False].output:
        raise OtherAnswer(f"{task.name}, seed {seed}: the two sides gave other tokens")
    return (sequences[True], spent[True]), (sequences[False], spent[False])


def _report(task: Task, answers: list[_Answers]) -> TaskReport:
    rates = [[(len(sequence.output) - 1) / spent_s for sequence, spent_s in each] for each in answers]
    return TaskReport(
        task=task.name,
        kind=task.kind,
        streams=1,
        tokens_per_second=Paired.of([rate[0] for rate in rates], [rate[1] for rate in rates]),
        tokens=len(answers) * task.max_tokens,
        drafted=sum(ours.drafted_tokens for (ours, _), _ in answers),
        accepted=sum(ours.accepted_tokens for (ours, _), _ in answers),
    )


if __name__ == "__main__":
    typer.run(run)
