"""Errors a user of the platform can meet.

    Exception
    └── DeepCoroError
        ├── UserError            something the user gave is wrong; printed as one message, never a traceback
        │   ├── ConfigError      a key or value of a run's description
        │   ├── DataError        a prepared dataset, a table, a file
        │   ├── ResourceError    the machine or cluster has less than the run asks for
        │   └── CheckpointError  a checkpoint that is missing, damaged or of another model
        ├── TrainingError        the run itself cannot go on (non-finite loss, nothing valid in the data)
        ├── SaveError            a checkpoint could not be written; the run goes on, and the last good one stays
        └── RunStopped           the run was asked to stop and has saved; no error, but it is not finished

Every message says what was wrong, where (file, row, key) and what to do.
"""


class DeepCoroError(Exception):
    """Root of all errors raised on purpose by this package."""


class UserError(DeepCoroError):
    """Something the user gave is wrong; the message is meant to be read without a traceback."""


class ConfigError(UserError):
    """An unknown key, or a value out of its range, in the description of a run."""


class DataError(UserError):
    """A prepared dataset, a table or a file that cannot be used as asked."""


class ResourceError(UserError):
    """A run asks for more than the machine or the cluster has."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class TrainingError(DeepCoroError):
    """A run that cannot go on."""


class SaveError(DeepCoroError):
    """A checkpoint that could not be written, such as on a full disk."""


class RunStopped(DeepCoroError):
    """A run that was asked to stop, and that the same command goes on with.

    ``exit_code`` is what the shell expects of a process that ended by the signal.
    """

    def __init__(self, message: str, exit_code: int = 143) -> None:
        super().__init__(message)
        self.exit_code = exit_code
