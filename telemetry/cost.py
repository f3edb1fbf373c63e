"""What an answer costs: the worker time that it took, by the price of the GPUs that the workers run on."""

from pydantic import BaseModel, ConfigDict, Field


class WorkerPrice(BaseModel):
    """The price of one worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu_hour_usd: float = Field(
        default=2.0,
        ge=0,
        allow_inf_nan=False,
        description="Dollars for one GPU and hour. 2.00 is the H800's price behind the $0.70 per million output tokens that "
        "LongCat-Flash's makers publish.",
    )
    gpus: int = Field(
        default=1,
        ge=1,
        description="GPUs of one worker; a worker without any is priced as if it had one, so that its figures compare.",
    )

    def of(self, busy_s: float) -> float:
        """Dollars for so many seconds of the whole worker."""
        return busy_s * self.gpus * self.gpu_hour_usd / 3600


class CostConfig(BaseModel):
    """Prices by pool. Only the time in which a worker's engine computed is priced, shared among the requests of each step: what
    stands idle is the operator's cost, not a request's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefill: WorkerPrice = WorkerPrice()
    decode: WorkerPrice = WorkerPrice()
