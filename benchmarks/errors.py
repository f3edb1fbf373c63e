"""What ends a benchmark before its figures are complete."""


class NotMeasured(Exception):
    """What was to be measured could not be. The message says why and is all that the user sees: where the fault is ours, let the
    bug's own exception pass."""
