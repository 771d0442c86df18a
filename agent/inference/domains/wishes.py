"""What Triton's config.pbtxt asks of the domain that runs its model.

Batches, their delay and threads are as wished where the domain's own settings leave them open. The
rest of the settings always say something: where that is not the wish, it is a warning.
"""

from collections.abc import Collection

from agent.config import Domain as Settings
from agent.errors import ModelError
from agent.inference import wire
from agent.inference.catalog import Model
from agent.inference.domains.batches import KINDS, Kind
from agent.inference.domains.instance import setup_of


def kind(domain: str, settings: Settings, models: Collection[Model]) -> Kind:
    """How calls are put together; of several wishes the most modest one holds.

    Raises ModelError where they need several engines.
    """
    engines = {model.manifest.engine for model in models}
    if len(engines) != 1:
        raise ModelError(
            f"domain {domain}: its models need the engines {', '.join(sorted(engines))}",
            "make a domain for each engine",
        )
    kind = KINDS[engines.pop()]
    wished = [model.wishes for model in models]
    rows = [one.batch_max for one in wished if one.batch_max is not None]
    delays_ms = [one.batch_delay_ms_max for one in wished if one.batch_delay_ms_max is not None]
    batch_max = settings.batch_max or min(rows, default=kind.batch_max)
    delay_ms = settings.batch_delay_ms_max
    if delay_ms is None:
        delay_ms = min(delays_ms, default=kind.batch_delay_s * 1000)
    queue_max = settings.queue_max or kind.queue_max
    return Kind(batch_max, delay_ms / 1000, queue_max, kind.always_joins)


def setup(settings: Settings, models: Collection[Model], threads: int) -> wire.Setup:
    """What the processes are told; `threads` are theirs where nobody wishes anything."""
    wished = max((one.wishes.threads or 0 for one in models), default=0)
    return setup_of(models, settings, settings.threads or wished or threads)


def unmet(settings: Settings, model: Model) -> list[str]:
    """What a model's config.pbtxt asks and the domain's settings say otherwise, as warnings."""
    wishes, found = model.wishes, list[str]()

    def compare(field: str, wish: object, key: str, own: object) -> None:
        if wish is not None and wish != own:
            found.append(f"{field} asks for {wish}; the domain's {key} is {own}")

    compare("instance_group.count", wishes.instances, "instances.min", settings.instances.min)
    compare("max_queue_size", wishes.queue_max, "queue_max", settings.queue_max)
    timeout_s = wishes.request_timeout_s
    compare("default_timeout (s)", timeout_s, "request_timeout_s", settings.request_timeout_s)
    if wishes.devices and settings.devices[0] not in wishes.devices:
        compare("instance_group.kind", "/".join(wishes.devices), "device", settings.devices[0])
    return found
