"""Whether an execution provider can run a model: each operator, of each opset, is on its list.

The lists beside this file are made by models/recipes/operators.py. In each, a line `[DOMAIN N]`
begins a domain whose opsets it knows up to N; a line `A-B: NAME …` says for which opsets of the
model those operators can be placed there.
"""

from functools import cache
from importlib.resources import files

from msgspec import Struct

from agent.errors import ModelError
from agent.inference.catalog.onnx_file import Onnx, Operator

EPS = ("cpu", "cuda", "tensorrt")
TOLD_MAX = 5
IR_VERSION_MAX = 13  # of ONNX Runtime 1.31


class Allowed(Struct, frozen=True):
    """What one execution provider can run."""

    title: str
    highest: dict[str, int]  # opset of each domain
    spans: dict[tuple[str, str], str]  # of domain and name: the opsets, as they are written

    def has(self, operator: Operator) -> bool:
        """Whether the operator, as its opset defines it, can be placed there."""
        opset = operator.opset or self.highest.get(operator.domain, 0)
        spans = self.spans.get((operator.domain, operator.name), "")
        return any(_within(span, opset) for span in spans.split(",") if span)


@cache
def allowed(ep: str) -> Allowed:
    """The list of an execution provider, one of EPS. Raises ModelError."""
    if ep not in EPS:
        raise ModelError(f"{ep!r} is no execution provider", f"known: {', '.join(EPS)}")
    text = files(__package__).joinpath("operators", f"{ep}.txt").read_text()
    title, domain = "", ""
    highest: dict[str, int] = {}
    spans: dict[tuple[str, str], str] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            title = title or line.lstrip("# ")
        elif line.startswith("["):
            domain, opset = line.strip("[]").split()
            domain = "" if domain == "ai.onnx" else domain
            highest[domain] = int(opset)
        else:
            span, names = line.split(": ")
            spans |= {(domain, name): span for name in names.split()}
    return Allowed(title, highest, spans)


def check(onnx: Onnx, ep: str) -> None:
    """Nothing in the model is unknown to the execution provider. Raises ModelError."""
    listed = allowed(ep)
    if onnx.ir_version > IR_VERSION_MAX:
        raise ModelError(
            f"{onnx.path}: has the IR version {onnx.ir_version}, expected {IR_VERSION_MAX} or less",
            "export it with an older onnx package",
        )
    for domain, opset in onnx.opsets.items():
        if opset > listed.highest.get(domain, opset):
            raise ModelError(
                f"{onnx.path}: is of opset {opset} of {_shown(domain)}; "
                f"{ep} goes up to {listed.highest[domain]} ({listed.title})",
                f"export it with opset {listed.highest[domain]} or less",
            )
    foreign = [operator for operator in onnx.operators if not listed.has(operator)]
    if foreign:
        told = "; ".join(_told(one, onnx.operators[one], listed) for one in foreign[:TOLD_MAX])
        more = f"; and {len(foreign) - TOLD_MAX} more" if len(foreign) > TOLD_MAX else ""
        raise ModelError(f"{onnx.path}: {ep} cannot run {told}{more}", _hint(foreign, ep))


def _told(operator: Operator, node: str, listed: Allowed) -> str:
    spans = listed.spans.get((operator.domain, operator.name))
    at = f" (node {node!r})" if node else ""
    opset = f"opset {operator.opset}" if operator.opset else "no opset imported"
    if spans:
        known = f"only opsets {spans.replace(',', ', ')} of it"
    elif operator.domain in listed.highest:
        known = "no operator of this name"
    else:
        known = f"operators of {', '.join(map(_shown, listed.highest))} only"
    return f"{operator.name} of {_shown(operator.domain)}, {opset}{at}: it has {known}"


def _hint(foreign: list[Operator], ep: str) -> str:
    elsewhere = [
        other for other in EPS if other != ep and all(allowed(other).has(o) for o in foreign)
    ]
    if elsewhere:
        return f"run it on {' or '.join(elsewhere)} (the domain's `devices`), or export it anew"
    if any(allowed(ep).spans.get((o.domain, o.name)) for o in foreign):
        return "export the model with another opset, one that is named here"
    return "export the model without these operators"


def _within(span: str, opset: int) -> bool:
    first, _, last = span.partition("-")
    return int(first) <= opset <= int(last or first)


def _shown(domain: str) -> str:
    return domain or "ai.onnx"
