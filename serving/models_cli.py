"""`serval models`: checkpoints on disk."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

models = typer.Typer(help="Checkpoints: what is in one, and tiny ones for tests.", no_args_is_help=True)


class TinyFamily(StrEnum):
    """Families of which a tiny model can be made."""

    LLAMA = "llama"
    LONGCAT_FLASH = "longcat-flash"
    LONGCAT_FLASH_LITE = "longcat-flash-lite"


@models.command(name="make-tiny")
def make_tiny(
    family: Annotated[TinyFamily, typer.Argument(help="What the model's architecture is.")],
    folder: Annotated[Path, typer.Argument(help="Where the checkpoint goes; made if it is not there.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Write a small checkpoint with random weights, in the form in which real ones are released."""
    from engine.tiny import write_tiny_llama
    from engine.tiny_longcat import LITE_CONFIG, write_tiny_longcat

    place = folder.expanduser()
    match family:
        case TinyFamily.LLAMA:
            print(write_tiny_llama(place, seed=seed))
        case TinyFamily.LONGCAT_FLASH:
            print(write_tiny_longcat(place, seed=seed))
        case TinyFamily.LONGCAT_FLASH_LITE:
            print(write_tiny_longcat(place, seed=seed, raw=LITE_CONFIG))


@models.command(name="inspect")
def inspect(
    folder: Annotated[Path, typer.Argument(help="Hugging Face folder; its config.json is enough.")],
    tensor_parallel_size: Annotated[
        int, typer.Option(min=1, max=64, help="Processes that would share the model, as engine.tensor_parallel_size.")
    ] = 1,
    memory_gib: Annotated[
        float | None, typer.Option(min=0, help="Memory of each of them: says how much KV fits beside the weights.")
    ] = None,
) -> None:
    """Say how large a model is: parameters, KV cache per token, and what one process must hold."""
    from serving.model_report import model_report

    for name, value in model_report(folder.expanduser(), tensor_parallel_size, memory_gib):
        print(f"{name:<24}{value}")
