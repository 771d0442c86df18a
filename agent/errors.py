"""What can go wrong, as one tree, and the exit code each branch ends a command with.

    HoldfastError                     1
    ├── ConfigError                  78   the configuration is wrong
    ├── AudioError                    1   a recording or a source cannot be read
    ├── ModelError                    1   a model on disk is missing, damaged or of the wrong form
    ├── DomainError                   1   the domain cannot work now; the work is in the store
    │   ├── PoisonError               1   this very work kills its worker; it is given up
    │   ├── CallLost                  1   a worker died of, or during, this call
    │   ├── BusyError                 1   not accepted: the queue is full, or nothing is ready
    │   ├── LateError                 1   the deadline passed before there was an answer
    │   └── RunError                  1   the model erred on this call
    ├── LinkError                     1   the connection to the broker ended or was refused
    ├── ProtocolError                 1   what the other side said makes no sense
    ├── RequestError                  1   what was asked is not in the form it must have
    │   ├── NotThere                  1   what was named is not there
    │   ├── NotNow                    1   it cannot be done as things stand
    │   ├── TooLarge                  1   it is more than is taken at once
    │   ├── TooSlow                   1   it did not come in time
    │   └── BundleError               7   a bundle is damaged, foreign or of the wrong kind
    ├── BundleUnfinished              8   an export stopped before all of it was written
    ├── StoreError                   73   the store cannot be opened or written
    │   ├── StoreFull                73   the configured bound is reached
    │   │   └── JobsFull             73   that of the jobs
    │   ├── StoreDamaged             73   what was kept is not what lies on the disk
    │   ├── EpochOver                73   the file was damaged, a new one has begun
    │   └── StoreLocked              75   another agent holds this store
    └── AgentUnreachable              3   no agent runs behind the socket
        └── AgentSilent               3   one holds the socket, and does not answer

`holdfast status` also ends with 4 (degraded) or 5 (unhealthy), `holdfast outbox verify` with 6 (the
store does not add up); 2 is a wrong command line.
Every error says what happened; `hint` says what to do about it.
"""

import sys
from typing import ClassVar


class HoldfastError(Exception):
    """Anything Holdfast itself reports; `hint` is the next step for the person who reads it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def told(self) -> int:
        """Tell the person at the terminal; the exit code."""
        print(f"holdfast: {self}", file=sys.stderr)
        if self.hint:
            print(f"  try: {self.hint}", file=sys.stderr)
        return self.exit_code


class ConfigError(HoldfastError):
    """The configuration cannot be used as it is written."""

    exit_code = 78


class AudioError(HoldfastError):
    """A recording or a source of sound cannot be read."""


class ModelError(HoldfastError):
    """A model on disk is missing, damaged, or does not have the form its engine expects."""


class DomainError(HoldfastError):
    """The domain's child is gone, hung or refused the work; try again when it is ready."""


class PoisonError(DomainError):
    """This work ended its worker several times, alone and while other work went well."""


class CallLost(DomainError):
    """A worker died of, or during, this call; the same call may be made again."""


class BusyError(DomainError):
    """The call was not accepted; `retry_s` is when to try again, as far as that is known."""

    def __init__(self, message: str, hint: str, retry_s: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_s = retry_s


class LateError(DomainError):
    """The call's deadline passed before there was an answer."""


class RunError(DomainError):
    """The model erred on this call: its fault, or that of what it was given."""


class LinkError(HoldfastError):
    """The connection to the broker ended or could not be made."""


class ProtocolError(HoldfastError):
    """A message does not have the form of the protocol, or says what cannot be."""


class RequestError(HoldfastError):
    """What was asked cannot be understood: the message says where, and what was expected."""


class NotThere(RequestError):
    """What was named is not there."""


class NotNow(RequestError):
    """It cannot be done as things stand; nothing was changed."""


class TooLarge(RequestError):
    """It is more than is taken at once; nothing was changed."""


class TooSlow(RequestError):
    """It did not come in time; nothing was changed."""


class BundleError(RequestError):
    """A bundle is not taken; `verdict` says why in one word, for programs."""

    exit_code = 7

    def __init__(self, message: str, hint: str, verdict: str) -> None:
        super().__init__(message, hint)
        self.verdict = verdict


class BundleUnfinished(HoldfastError):
    """An export stopped before all of it was written: no room, or the stick is gone."""

    exit_code = 8


class StoreError(HoldfastError):
    """The store cannot be opened, read or written."""

    exit_code = 73


class StoreFull(StoreError):
    """The bound `store.bytes_max` or the disk itself is reached; nothing was written."""


class JobsFull(StoreFull):
    """As many jobs are kept, or so much of theirs, as may be; nothing was written."""


class StoreDamaged(StoreError):
    """What lies on the disk is not what was written there."""


class EpochOver(StoreError):
    """The store's file was damaged and put aside; what was known of it is not true of the new."""


class StoreLocked(StoreError):
    """Another process holds this store."""

    exit_code = 75


class AgentUnreachable(HoldfastError):
    """No agent answers on the API socket."""

    exit_code = 3


class AgentSilent(AgentUnreachable):
    """An agent holds the API socket, but no answer comes: it may hang, or be overrun."""
