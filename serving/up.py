"""`serval up`: makes sure of the model, then runs the cluster in the way that was asked for."""

import asyncio

from protocol.errors import ConfigError
from serving.config import ServalConfig
from serving.display import Display
from serving.front import exposures
from serving.model_folder import embedded_folder


def up(config: ServalConfig) -> int:
    """Runs until Ctrl-C; the exit status."""
    with Display() as display:
        if config.model == embedded_folder() and not config.model.is_dir():
            _convert_embedded_model(display)
        for exposure in exposures(config):
            display.line(f"warning: {exposure}")
        if config.cluster.ray:
            from serving.ray_app import run as run_on_ray

            return run_on_ray(config, display)
        from serving.launcher import Launcher

        return asyncio.run(Launcher(config, display).run())


def _convert_embedded_model(display: Display) -> None:
    try:
        from serving.embedded_model import embedded_model
    except ImportError as error:
        raise ConfigError(f"model: the embedded model needs the extra `smollm` ({error}); or pass --model DIR") from error

    embedded_model(display.reporter("model"))
    display.finish("model")
