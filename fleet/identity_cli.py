"""`holdfast-fleet identity`: who may come in at the broker, and what devices are enrolled with."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent import whole_file
from agent.errors import HoldfastError, RequestError
from agent.protocol import signing
from agent.words import printable
from fleet.bundle_cli import KeyFile
from fleet.options import FLEET_KEY, Json

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from fleet.identity.authority import Authority, Issued, Role

app = typer.Typer(help="Certificates of devices, broker and cloud side.", no_args_is_help=True)
Folder = Annotated[
    Path,
    typer.Option("--folder", envvar="HOLDFAST_FLEET_IDENTITY", help="The authority's folder."),
]
Name = Annotated[str, typer.Argument(help="The device's id; or ingest, controller, a broker's.")]
Csr = Annotated[
    Path | None,
    typer.Option("--csr", help="What `holdfast provision request` wrote; a device's key is its."),
]
Out = Annotated[Path, typer.Option("--out", help="The folder to write to.")]
Days = Annotated[int, typer.Option("--days", min=1, max=36_500, help="How long it is valid.")]
BrokerUrl = Annotated[
    str | None,
    typer.Option(
        "--broker", help="mqtts://HOST: writes NAME.enrolment too, all that the device needs."
    ),
]
Prefix = Annotated[
    str | None, typer.Option("--prefix", help="link.topic_prefix; none: as the device has it.")
]
CommandKeys = Annotated[
    list[str], typer.Option("--command-key", help="hf1pub:...: whose orders it takes.")
]
TufRoot = Annotated[Path | None, typer.Option("--tuf-root", help="The first root.json of updates.")]
FOLDER = Path("var/identity")


@app.command("init")
def init(
    folder: Folder = FOLDER,
    name: Annotated[str, typer.Option("--name", help="What it is called.")] = "Holdfast",
    as_json: Json = False,
) -> None:
    """Make the authority: its key stays in the folder, of which a copy belongs in a safe."""
    from fleet.identity.authority import Authority

    made = Authority.made(folder, name)
    found = {"folder": str(folder), "certificate": str(made.certificate_file)}
    _say(
        found,
        f"{folder}: made; {made.certificate_file} is the ca_file of devices and broker",
        as_json=as_json,
    )


@app.command("issue")
def issue(
    name: Name,
    csr: Csr = None,
    role: Annotated[
        str, typer.Option("--role", help="device, ingest, controller, broker")
    ] = "device",
    host: Annotated[
        list[str], typer.Option("--host", help="Of a broker: its names and addresses.")
    ] = [],  # noqa: B006 - typer copies it
    days: Days = 730,
    out: Out = Path(),
    broker: BrokerUrl = None,
    prefix: Prefix = None,
    command_keys: CommandKeys = [],  # noqa: B006
    tuf_root: TufRoot = None,
    key_file: KeyFile = FLEET_KEY,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """A certificate for somebody who has none yet: NAME.crt, and NAME.key where --csr is left out.

    A device's key never leaves it: --csr is needed there. With --broker also NAME.enrolment, which
    `holdfast provision install` takes.
    """
    unused = {"--prefix": prefix, "--command-key": command_keys, "--tuf-root": tuf_root}
    if not broker and (said := [option for option, value in unused.items() if value]):
        raise RequestError(
            f"{', '.join(said)} without --broker: only NAME.enrolment has room for it",
            "say --broker mqtts://HOST[:PORT], too",
        )
    trusted = [signing.public_key(one) for one in command_keys]
    root = _root(tuf_root) if tuf_root else ""
    authority = _authority(folder)
    files = _issue(authority, name, _role(role), csr, host, days, out, again=False)
    if broker:
        files.append(_enrolment(authority, name, out, key_file, broker, prefix, trusted, root))
    _written(files, as_json=as_json)


@app.command("renew")
def renew(
    name: Name,
    csr: Csr = None,
    role: Annotated[str, typer.Option("--role", help="As it was issued.")] = "device",
    host: Annotated[list[str], typer.Option("--host", help="Of a broker.")] = [],  # noqa: B006
    days: Days = 730,
    out: Out = Path(),
    enrolment: Annotated[
        bool, typer.Option("--enrolment", help="Write NAME.enrolment, too, to go by stick.")
    ] = False,
    key_file: KeyFile = FLEET_KEY,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Another certificate for the same one; the former serves on until it ends or is revoked.

    `--csr` is what the command certificate.request has answered; certificate.install takes the
    NAME.crt that this writes. By stick: `holdfast provision request`, and --enrolment here.
    """
    authority = _authority(folder)
    files = _issue(authority, name, _role(role), csr, host, days, out, again=True)
    if enrolment:
        files.append(_enrolment(authority, name, out, key_file))
    _written(files, as_json=as_json)


@app.command("revoke")
def revoke(
    which: Annotated[str, typer.Argument(help="A name (all that it has), or one serial.")],
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Refuse certificates: put revoked.crl to the broker, and have it read it (SIGHUP).

    A connection that is up stays so until it ends: restart the broker to end them all.
    """
    authority = _authority(folder)
    found = authority.revoke(which)
    said = "\n".join([f"{one.name}: {one.serial} is revoked" for one in found])
    _say(
        {"revoked": [_shown(one) for one in found], "list": str(authority.revoked_file)},
        f"{said or 'all of them were revoked already'}\n"
        f"{authority.revoked_file}: copy it to the broker, then: systemctl reload mosquitto",
        as_json=as_json,
    )


@app.command("ls")
def ls(folder: Folder = FOLDER, as_json: Json = False) -> None:
    """Each certificate: whose, until when, whether it is revoked."""
    found = _authority(folder).all()
    now = datetime.now(UTC)
    lines = [
        f"{one.name:24} {one.role:10} {one.ends:%Y-%m-%d}  {_state(one, now):8} {one.serial}"
        for one in found
    ]
    _say({"certificates": [_shown(one) for one in found]}, "\n".join(lines), as_json=as_json)


def _authority(folder: Path) -> "Authority":
    from fleet.identity.authority import Authority

    return Authority(folder)


def _role(text: str) -> "Role":
    from fleet.identity.authority import ROLES

    found = next((one for one in ROLES if one == text), None)
    if found is None:
        raise RequestError(f"--role {text} is none", f"one of {', '.join(ROLES)}")
    return found


def _root(file: Path) -> str:
    from fleet.updates.roots import root_text

    return root_text(file)


def _issue(
    authority: "Authority",
    name: str,
    role: "Role",
    csr: Path | None,
    hosts: list[str],
    days: int,
    out: Path,
    *,
    again: bool,
) -> list[str]:
    """The files that were written. Raises RequestError."""
    from fleet.identity import authority as parts

    if csr is None and role == "device":
        raise RequestError(
            "a device's key is made on the device, and never leaves it",
            "`holdfast provision request` there, then --csr FILE here",
        )
    key = None if csr else parts.new_key()
    try:
        asked = parts.request(csr.read_bytes()) if csr else key
        assert asked is not None
        pem = authority.issue(name, role, asked, hosts=hosts, days=days, again=again)
        out.mkdir(parents=True, exist_ok=True)
        files = [out / f"{name}.crt"]
        if key is not None:
            files.append(out / f"{name}.key")
            whole_file.replace(files[1], parts.key_pem(key), whole_file.private(files[1]))
        whole_file.replace(files[0], pem)
    except OSError as error:
        raise HoldfastError(f"{error.filename or out}: {error.strerror or error}") from error
    return [str(one) for one in files]


def _enrolment(
    authority: "Authority",
    name: str,
    out: Path,
    key_file: Path,
    broker: str | None = None,
    prefix: str | None = None,
    command_keys: Sequence[str] = (),
    tuf_root: str = "",
) -> str:
    """The one signed file for a device; its name."""
    import msgspec

    from agent.protocol import enrolment

    key, path = signing.Key.kept(key_file), out / f"{name}.enrolment"
    try:
        made = enrolment.Enrolment(
            device=name,
            certificate=(out / f"{name}.crt").read_text("ascii"),
            authority=authority.pem.decode(),
            broker_url=broker,
            topic_prefix=prefix,
            issued=datetime.now(UTC),
            fleet_keys=[key.public],
            command_keys=list(command_keys),
            tuf_root=tuf_root,
        )
        made = msgspec.convert(msgspec.to_builtins(made), enrolment.Enrolment)  # checked
        whole_file.replace(path, enrolment.sign(made, key))
    except (OSError, UnicodeDecodeError) as error:
        raise HoldfastError(f"{name}.enrolment: {error}") from error
    except msgspec.ValidationError as error:
        raise RequestError(f"{name}.enrolment: {error}", "--broker mqtts://HOST[:PORT]") from error
    return str(path)


def _written(files: list[str], *, as_json: bool) -> None:
    _say({"files": files}, "\n".join(files), as_json=as_json)


def _say(document: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(document))
    else:
        for line in text.split("\n"):
            typer.echo(printable(line))


def _shown(one: "Issued") -> dict[str, Any]:
    return {
        "name": one.name,
        "role": one.role,
        "serial": one.serial,
        "begins": one.begins.isoformat(),
        "ends": one.ends.isoformat(),
        "revoked": one.revoked.isoformat() if one.revoked else None,
    }


def _state(one: "Issued", now: datetime) -> str:
    if one.revoked:
        return "revoked"
    return "expired" if now > one.ends else "serves"
