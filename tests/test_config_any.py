"""Whatever stands in the configuration file, it loads or the mistake is explained."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import config
from agent.config_file import load
from agent.errors import ConfigError
from tests.outside import ROOT

DEFAULT = ROOT / "config" / "default.yaml"

# What YAML reads as something else than text and then fails on, and what goes round in circles.
STUMBLES = {
    "a date that is none": "device_id: 2024-13-45\n",
    "binary digits without digits": "device_id: 0b_\n",
    "a tag that its value cannot bear": "device_id: !!int abc\n",
    "a time stamp that is none": "device_id: !!timestamp abc\n",
    "a section within itself": "api: &a {b: *a}\n",
    "brackets without end": f"api: {'[' * 5000}\n",
    "a key that is no text": "link: {1: 2}\n",
    "a tag of Python": "device_id: !!python/object:os.system x\n",
    "a broken merge": "<<: 3\n",
    "a source that is no section": "audio: {sources: [true]}\n",
    "two documents": "link: {ack_from: ingest}\n---\nlink: {ack_from: ingest}\n",
}

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.text(max_size=12)
    | st.sampled_from(["30 s", "ingest", "folder", "mqtt://h", "inbox"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "name", "path", "audio", "sources", "link", "ack_from"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
SECTIONS = st.dictionaries(
    st.sampled_from(["link", "audio", "store", "api", "domains", "log_level", "device_id"]), VALUES
)
PIECES = st.sampled_from([": ", "- ", "\n", "  ", "#", "'", '"', "[", "{", "&a ", "*a", "!!", "<<"])
ANYTHING = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def loads_or_is_explained(folder: Path, text: str) -> None:
    path = folder / "holdfast.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        assert isinstance(load(path), config.Config)
    except ConfigError as error:
        assert str(error).startswith(str(path))
        assert error.hint


@pytest.mark.parametrize("name", STUMBLES)
def test_what_yaml_itself_stumbles_over_is_explained(tmp_path: Path, name: str) -> None:
    path = tmp_path / "holdfast.yaml"
    path.write_text(STUMBLES[name])
    with pytest.raises(ConfigError, match=str(path)) as caught:
        load(path)
    assert caught.value.hint


@ANYTHING
@given(st.text())
def test_any_text_loads_or_is_explained(tmp_path: Path, text: str) -> None:
    loads_or_is_explained(tmp_path, text)


@ANYTHING
@given(SECTIONS | VALUES)
def test_any_yaml_loads_or_is_explained(tmp_path: Path, value: object) -> None:
    loads_or_is_explained(tmp_path, yaml.dump(value, allow_unicode=True))


@ANYTHING
@given(st.data())
def test_the_shipped_file_changed_anywhere_loads_or_is_explained(
    tmp_path: Path, data: st.DataObject
) -> None:
    text = DEFAULT.read_text().replace("    # - ", "    - ").replace("    #   ", "      ")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(PIECES | st.text(max_size=3)) + text[at + length :]
    loads_or_is_explained(tmp_path, text)
