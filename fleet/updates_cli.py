"""`holdfast-fleet updates`: content that devices believe, signed by The Update Framework.

Exit codes: 0 done; 1 not, and why; 6 `status` found a signature that has expired, or will within a
tenth of its time; 78 a key or the folder is not as it should be.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.errors import NotThere, RequestError
from fleet.options import Json

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from fleet.updates.publishing import Publishing
    from fleet.updates.repository import Repository

app = typer.Typer(help="Signed content: keys, targets, publishing.", no_args_is_help=True)
Home = Annotated[
    Path,
    typer.Option("--home", envvar="HOLDFAST_UPDATES", help="repository/ lies in it, and a draft."),
]
Keys = Annotated[
    list[Path],
    typer.Option("--keys", help="A folder of keys; again for each, as a stick with offline ones."),
]
Role = Annotated[str, typer.Argument(help="root, targets, snapshot or timestamp.")]
HOME, KEYS = Path("var/updates"), [Path("var/updates/keys")]
OVERDUE = 6


@app.command("init")
def init(
    home: Home = HOME,
    keys: Keys = KEYS,
    threshold: Annotated[
        list[str], typer.Option(help="ROLE=N: so many keys are made, and must sign; else 1.")
    ] = [],  # noqa: B006 - typer reads it
    days: Annotated[
        list[str], typer.Option(help="ROLE=N: how long a signature holds; default 730/365/90/30.")
    ] = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Begin a repository, with new keys in the first folder of --keys.

    Then move those of root and targets to a stick that is put away, and give
    repository/metadata/1.root.json to each device (updates.root_file).
    """
    from fleet.updates import draft
    from fleet.updates import keys as keyring
    from fleet.updates.repository import ROLES, Repository

    repository = Repository(home)
    thresholds = _numbers(threshold, ROLES, 16)
    terms = draft.Terms(**_numbers(days, ROLES, 36_500))
    with repository.locked():
        if repository.begun:
            raise RequestError(f"{home}: there is a repository already", "name another --home")
        made = {
            role: [keyring.kept(keys[0], f"{role}-{i + 1}") for i in range(thresholds.get(role, 1))]
            for role in ROLES
        }
        draft.write(home / "terms.json", terms)
        signing = _publishing(repository, keys)
        public = {role: [one.public_key for one in made[role]] for role in ROLES}
        signing.begin(public, thresholds)
    root = repository.root_file(1)
    _say(
        as_json,
        {"root_file": str(root), "keys": {r: [k.keyid for k in public[r]] for r in ROLES}},
        f"{repository.folder}: begun",
        f"trusted from the beginning: {root} (updates.root_file of each device)",
        f"keys: {keys[0]}; move root-*.pem and targets-*.pem to a stick, and put it away",
    )


@app.command("key")
def key(
    name: Annotated[str, typer.Argument(help="Of its file, as targets-anna.")],
    keys: Keys = KEYS,
    as_json: Json = False,
) -> None:
    """Make a key on its owner's own machine; its public half is for `rotate --public`."""
    from fleet.updates import keys as keyring

    if not name.replace("-", "").replace("_", "").isalnum():
        raise RequestError(f"{name!r}: no name of a key", "write letters, digits, - and _")
    shown = keyring.shown(keyring.make(keys[0], name).public_key)
    _say(as_json, shown, json.dumps(shown))


@app.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="What devices fetch.")],
    kind: Annotated[str, typer.Option(help="model, agent or file.")],
    name: Annotated[str, typer.Option(help="Of the model, or what it is.")],
    version: Annotated[str, typer.Option(help="A whole number for a model.")],
    target: Annotated[str, typer.Option(help="Its path; none: KINDs/NAME-VERSION.SUFFIX.")] = "",
    min_free_bytes: Annotated[
        int, typer.Option(help="Free on the device's disk beside it, to install it.")
    ] = 0,
    tag: Annotated[
        list[str], typer.Option(help="For devices with this tag or id alone; again for more.")
    ] = [],  # noqa: B006
    home: Home = HOME,
    as_json: Json = False,
) -> None:
    """Take a file into the draft; `publish` signs it."""
    from fleet.updates import drafting
    from fleet.updates.repository import Repository

    repository = Repository(home)
    told = {"kind": kind, "name": name, "version": version, "tags": tag}
    with repository.locked():
        path, added = drafting.add(
            repository, file, told | {"min_free_bytes": min_free_bytes}, target
        )
    _say(
        as_json,
        {"target": path, "sha256": added.sha256, "size_bytes": added.size_bytes},
        f"{path}: in the draft, {added.size_bytes:,} bytes; signed by the next publish",
    )


@app.command("remove")
def remove(
    target: Annotated[str, typer.Argument(help="Its path, as `status` shows it.")],
    home: Home = HOME,
    as_json: Json = False,
) -> None:
    """Take a target out of the draft, and out of what is published next."""
    from fleet.updates import drafting
    from fleet.updates.repository import Repository

    repository = Repository(home)
    with repository.locked():
        if not drafting.remove(repository, target):
            raise NotThere(
                f"{target}: there is no such target", "see holdfast-fleet updates status"
            )
    _say(as_json, {"removed": target}, f"{target}: will not be there after the next publish")


@app.command("publish")
def publish(
    home: Home = HOME,
    keys: Keys = KEYS,
    renew: Annotated[
        list[str], typer.Option(help="Sign this role anew too, as its time runs out: a role.")
    ] = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Sign the draft, and let devices see it. Without a draft: snapshot and timestamp anew.

    Run it from a timer with the online keys, more often than the timestamp expires: a draft waits
    until the keys of targets are at hand, too. With --renew it always waits.
    """
    from fleet.updates import drafting
    from fleet.updates.repository import ROLES, Repository

    _known(renew, ROLES)
    repository = Repository(home)
    with repository.locked():
        state = repository.state()
        done = _publishing(repository, keys).publish(state, drafting.draft(repository), renew)
        if not done.waits:
            drafting.done(repository, state)
    versions = {role: getattr(state, role).signed.version for role in done.signed}
    told = ", ".join(f"{role} {version}" for role, version in versions.items())
    waits = [f"the draft is not published: {done.waits}"] if done.waits else []
    document = {"signed": versions} | ({"draft_waits": done.waits} if done.waits else {})
    _say(as_json, document, f"published: {told}", *waits)


@app.command("rotate")
def rotate(
    role: Role,
    home: Home = HOME,
    keys: Keys = KEYS,
    public: Annotated[
        list[Path],
        typer.Option(help="A file with a public key, of `key`; none: new keys are made."),
    ] = [],  # noqa: B006
    threshold: Annotated[int | None, typer.Option(help="How many must sign; none: as now.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="The former keys count on.")] = False,
    as_json: Json = False,
) -> None:
    """Give a role other keys, by a new root: when one is lost or stolen, or somebody leaves.

    The keys of the root must be at hand; of the role's former ones as many as there are.
    """
    from fleet.updates import keys as keyring
    from fleet.updates.repository import ROLES, Repository

    _known([role], ROLES)
    repository = Repository(home)
    with repository.locked():
        state = repository.state()
        root = state.root.signed
        now = root.roles[role].threshold if threshold is None else threshold
        fresh = [keyring.public(path) for path in public]
        if not fresh and not keep:
            names = [f"{role}-{root.version + 1}-{i + 1}" for i in range(max(now, 1))]
            fresh = [keyring.kept(keys[0], name).public_key for name in names]
        signed = _publishing(repository, keys).rotate(state, role, fresh, now, keep=keep)
    _say(
        as_json,
        {"root": root.version, "signed": signed, "keys": root.roles[role].keyids},
        f"{role}: {len(root.roles[role].keyids)} keys by root {root.version}; take away the former",
    )


@app.command("status")
def status(home: Home = HOME, as_json: Json = False) -> None:
    """What is published, until when, by how many keys, and what is in the draft.

    Exit code 6: sign a role anew, it has expired or soon will.
    """
    from fleet.updates import showing
    from fleet.updates.repository import Repository

    document = showing.document(Repository(home))
    if as_json:
        print(json.dumps(document))
    else:
        for line in showing.lines(document):
            typer.echo(line)
    if document["overdue"]:
        raise typer.Exit(OVERDUE)


def _publishing(repository: "Repository", folders: list[Path]) -> "Publishing":
    from fleet.updates import draft, keys
    from fleet.updates.publishing import Publishing

    terms = draft.read(repository.home / "terms.json", draft.Terms)
    return Publishing(repository, keys.found(folders), terms)


def _numbers(pairs: list[str], roles: tuple[str, ...], most: int) -> dict[str, int]:
    found = {}
    for pair in pairs:
        role, _, number = pair.partition("=")
        _known([role], roles)
        if not (number.isdecimal() and 1 <= int(number) <= most):
            raise RequestError(f"{pair!r}: expected ROLE=N, N from 1 to {most:,}", "as targets=2")
        found[role] = int(number)
    return found


def _known(named: list[str], roles: tuple[str, ...]) -> None:
    for role in named:
        if role not in roles:
            raise RequestError(f"{role!r}: no role", f"name one of {', '.join(roles)}")


def _say(as_json: bool, document: dict[str, Any], *lines: str) -> None:
    if as_json:
        print(json.dumps(document))
        return
    for line in lines:
        typer.echo(line)
