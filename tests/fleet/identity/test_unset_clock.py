"""A real agent that boots in 1970, or ten years ahead, and knows that nobody has set its clock."""

import struct
import time
from pathlib import Path

import pytest

from fleet.identity import authority
from tests.fleet.identity.office import Office, ShippedBroker
from tests.fleet.process import IngestProcess
from tests.outside import Device, running, until

IN_TEN_YEARS_S = 3652 * 86_400
NAME = "device-under-test"


@pytest.mark.parametrize("when", ["1970", "+10 years"])
def test_a_boot_at_any_time_delivers(
    when: str, unset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS, with the certificates of today, each asked for its own."""
    office = Office(tmp_path)
    broker = ShippedBroker(tmp_path, office)
    pem = office.authority.issue(NAME, "device", key := authority.new_key())
    pair, trust = tmp_path / "device.pem", office.authority.certificate_file
    pair.write_bytes(authority.key_pem(key) + pem)
    link = {"broker_url": broker.url, "ca_file": str(trust), "cert_file": str(pair)}
    device = Device(tmp_path, {"link": {"ack_from": "ingest", **link}})
    own = [str(one) for one in office.pair("ingest", "ingest")]
    ingest = IngestProcess(
        *(tmp_path, broker.url.replace("127.0.0.1", "localhost"), f"sqlite:///{tmp_path}/f.db"),
        *("--ca-file", str(trust), "--cert-file", own[0], "--key-file", own[1]),
    )
    off_s = 86_400 - int(time.time()) if when == "1970" else IN_TEN_YEARS_S
    (tmp_path / "off").write_bytes(struct.pack("=q", off_s))
    with running(broker, ingest):
        monkeypatch.setenv("LD_PRELOAD", str(unset))
        monkeypatch.setenv("HOLDFAST_CLOCK", str(tmp_path / "off"))
        with running(device):
            until(lambda: device.status()["link"]["connected"], "the link is up")
            found = {one["name"]: one for one in device.status()["conditions"]}
            assert "never was" in found["expiry_unjudged"]["cause"]
            assert "link_certificate" not in found, "of its own, nobody knows the end either"
            year = time.gmtime(found["expiry_unjudged"]["since_us"] / 1e6).tm_year
            assert (year == 1970) == (when == "1970"), "it believes what its clock says"
            if when != "1970":
                return  # what is sent is told apart by no date
            device.kill()
            device.start()  # which is a record
            until(lambda: device.ledger("watchdog")["delivered"], "a record is stored, and acked")
