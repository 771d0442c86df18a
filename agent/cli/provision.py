"""`holdfast provision`: who this device is to its broker. It needs no agent and no network.

holdfast provision request --out /media/usb/press-7.csr     its key is made here, and stays here
(in the office)      holdfast-fleet identity issue press-7 --csr press-7.csr --broker mqtts://...
holdfast provision install /media/usb/press-7.enrolment --by hf1pub:... --write
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent import plain_file
from agent.cli.options import DEFAULT, Config, Json
from agent.errors import HoldfastError
from agent.words import printable

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from agent.config import Config as Settings
    from agent.identity.enrol import Place
    from agent.identity.pair import Shown

app = typer.Typer(help="The device's certificate, and whom it believes.", no_args_is_help=True)


@app.command("request")
def request(
    device: Annotated[str | None, typer.Option(help="Its id; none: device_id.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file; none: standard output.")] = None,
    config: Config = DEFAULT,
) -> None:
    """Make this device's key, and write a certificate's request for it.

    Asked again, it is for the same key, until the certificate was installed.
    """
    settings = _settings(config)
    try:
        pem = _place(settings).request(device or settings.device)
        if out:
            out.write_text(pem, "ascii")
    except OSError as error:
        raise _failed(error) from error
    if out is None:
        print(pem, end="")


@app.command("install")
def install(
    file: Annotated[Path, typer.Argument(help="What `holdfast-fleet identity issue` wrote.")],
    by: Annotated[
        str | None, typer.Option("--by", help="The office's key; none: one of bundle.fleet_keys.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the lines into the configuration, too.")
    ] = False,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Take an enrolment: certificate, authority and keys; say what the configuration has to say.

    Nothing is changed unless the file is signed by who is believed, for this device, and for the
    key that it made. The same file may be taken again.
    """
    from agent.cli import config_lines
    from agent.clock import Clock
    from agent.known_time import KnownTime
    from agent.protocol import enrolment, signing

    settings = _settings(config)
    known = KnownTime(Path(settings.store.path).with_name("known-time.json"), Clock())
    believed = signing.public_key(by) if by else None
    try:
        with plain_file.opened(file) as opened:
            content = opened.read(enrolment.ENROLMENT_BYTES_MAX + 1)
        found, lines = _place(settings).take(content, believed, known)
        changed = write and config_lines.write(config, lines)
    except OSError as error:
        raise _failed(error) from error
    if as_json:
        told = {".".join(key): value for key, value in lines.items()}
        print(json.dumps({**found._asdict(), "config": told, "written": changed}))
        return
    _show(found)
    if not write:
        typer.echo(f"write into {config}, or add --write here:\n{config_lines.shown(lines)}")
    elif changed:
        typer.echo(f"{config}: written; restart the agent")


@app.command("show")
def show(config: Config = DEFAULT, as_json: Json = False) -> None:
    """The certificate that this device shows."""
    from agent.identity.pair import Pair

    settings = _settings(config)
    file = settings.link.cert_file
    try:
        found = (Pair(Path(file)) if file else _place(settings).pair).shown()
    except OSError as error:
        raise _failed(error) from error
    if as_json:
        print(json.dumps(found._asdict()))
    else:
        _show(found)


def _settings(path: Path) -> "Settings":
    from agent import config_file

    return config_file.load(path)


def _place(settings: "Settings") -> "Place":
    from agent.identity.enrol import Place

    return Place(settings)


def _show(found: "Shown") -> None:
    from agent.known_time import day

    typer.echo(printable(f"{found.device}: certificate {found.serial} of {found.issuer}"))
    typer.echo(f"  valid {day(found.begins_s)} to {day(found.ends_s)}, SHA-256 {found.sha256}")


def _failed(error: OSError) -> HoldfastError:
    return HoldfastError(
        f"{error.filename or 'the disk'}: {error.strerror or error}",
        "run it as the agent's user, or with sudo; look at room and rights on the disk",
    )
