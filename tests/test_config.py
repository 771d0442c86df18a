"""The configuration file: the shipped one is right, and every mistake in one is explained."""

from pathlib import Path

import pytest

from agent import config
from agent.config_file import load
from agent.errors import ConfigError
from tests.outside import ROOT

DEFAULT = ROOT / "config" / "default.yaml"
REFERENCE = ROOT / "config" / "reference.yaml"
SCHEMA = ROOT / "config" / "schema.json"
TRIED = "link:\n  ack_from: broker\n"
LINK = "link:\n  ack_from: ingest\n"
TRIAL = "link: {ack_from: broker}\n"
FOLDER = "    - kind: folder\n      name: inbox\n      path: in\n"

# text, the line of the mistake, its key, words of what was expected, words of the hint
MISTAKES = {
    "a wrong section": ("linc:\n  ack_from: ingest\n", 1, "linc", "unknown key", "link"),
    "a wrong key": ("link:\n  ack_form: ingest\n", 2, "link.ack_form", "unknown key", "ack_from"),
    "a wrong key in a source": (
        f"{LINK}audio:\n  sources:\n{FOLDER}      setle_s: 1\n",
        8,
        "audio.sources[0].setle_s",
        "unknown key",
        "settle_s",
    ),
    "a text for a number": (
        f"{LINK}api:\n  port: http\n",
        4,
        "api.port",
        "expected `int`, got `str`; found 'http'",
        "schema.json",
    ),
    "a domain's class that is none": (
        f"{LINK}domains:\n  tiny:\n    models: [a]\n    class: fast\n",
        6,
        "domains.tiny.class",
        "unknown value 'fast'",
        "realtime, interactive, batch",
    ),
    "a text for a number deep in a domain": (
        f"{LINK}domains:\n  tiny:\n    models: [a]\n    instances: {{min: three}}\n",
        6,
        "domains.tiny.instances.min",
        "found 'three'",
        "schema.json",
    ),
    "a key that a domain has not": (
        f"{LINK}domains:\n  tiny:\n    models: [a]\n    memory_bytes: 3\n",
        6,
        "domains.tiny.memory_bytes",
        "unknown key",
        "memory_bytes_max",
    ),
    "a domain's name that is none": (
        f"{LINK}domains:\n  Tiny: {{models: [a]}}\n",
        4,
        "domains.Tiny",
        "a name of 1 to 32 letters",
        "schema.json",
    ),
    "a model in two domains": (
        f"{LINK}domains:\n  a: {{models: [x]}}\n  b:\n    models:\n    - y\n    - x\n",
        8,
        "domains.b.models[1]",
        "'x' is a model of domain a already",
        "one domain",
    ),
    "a domain that is to hear, and cannot": (
        f"{LINK}audio: {{domain: a}}\ndomains:\n  a:\n    models: [x]\n    engine: onnx\n",
        7,
        "domains.a.engine",
        "audio.domain is a",
        "another domain in audio.domain",
    ),
    "fewer instances than at least": (
        f"{LINK}domains: {{a: {{models: [x], instances: {{min: 3}}}}}}\n",
        3,
        "domains.a.instances.min",
        "3 is above max 1",
        "raise max",
    ),
    "CPUs that go backwards": (
        f"{LINK}domains: {{a: {{models: [x], cpus: '3-1'}}}}\n",
        3,
        "domains.a.cpus",
        "goes backwards",
        "0-3",
    ),
    "a number for a text": (
        f"{LINK}models: {{path: 3}}\n",
        3,
        "models.path",
        "expected `str`, got `int`",
        "schema.json",
    ),
    "messages that no ingest takes": (
        f"{LINK}  payload_bytes_max: 16777216\n",
        3,
        "link.payload_bytes_max",
        "an ingest takes packets of 16 MiB at most; found 16777216",
        "schema.json",
    ),
    "a list for a section": (
        f"{LINK}audio: [a, b]\n",
        3,
        "audio",
        "expected `object`, got `array`",
        "schema.json",
    ),
    "an unknown class in a rule": (
        f"{LINK}store:\n  streams:\n    - match: a\n      durability: fast\n",
        6,
        "store.streams[0].durability",
        "unknown value 'fast'",
        "choose one of sync, group, volatile",
    ),
    "a wrong key in a rule": (
        f"{LINK}store:\n  streams:\n    - match: a\n      prioritie: 1\n",
        6,
        "store.streams[0].prioritie",
        "unknown key",
        "did you mean priority?",
    ),
    "sound in memory alone": (
        f"{TRIAL}store:\n  streams:\n    - match: mic.*\n      durability: volatile\n",
        5,
        "store.streams[0].durability",
        "'mic.*' matches streams of sound (*.raw), which is never volatile",
        "put a rule for '*.raw' before this one",
    ),
    "segments in memory alone": (
        f"{TRIAL}store:\n  streams:\n    - match: '*.raw'\n"
        "    - {match: '*', durability: volatile}\n",
        5,
        "store.streams[1].durability",
        "'*' matches streams of sound (*.segments), which is never volatile",
        "put a rule for '*.segments' before this one",
    ),
    "an empty section": ("link:\n", 1, "link", "expected `object`, got `null`", "schema.json"),
    "another unit": (
        f"{LINK}  ack_timeout_ms: 30000\n",
        3,
        "link.ack_timeout_ms",
        "unknown unit 'ms'; this setting is in seconds",
        "write ack_timeout_s",
    ),
    "a unit in words": (
        f"{LINK}audio:\n  chunk_seconds: 0.5\n",
        4,
        "audio.chunk_seconds",
        "unknown unit 'seconds'; this setting is in seconds",
        "write chunk_s",
    ),
    "no unit": (
        f"{LINK}  heartbeat: 5\n",
        3,
        "link.heartbeat",
        "unknown unit '(none)'; this setting is in seconds",
        "write heartbeat_s",
    ),
    "a unit in the value": (
        f"{LINK}  ack_timeout_s: 30 s\n",
        3,
        "link.ack_timeout_s",
        "'30 s' carries a unit; expected a plain number",
        "in seconds",
    ),
    "a unit at the number": (
        f"{LINK}store:\n  bytes_max: 2GiB\n",
        4,
        "store.bytes_max",
        "'2GiB' carries a unit; expected a plain number",
        "in bytes",
    ),
    "nobody to trust": (
        "link:\n  heartbeat_s: 5\n",
        1,
        "link",
        "missing required field `ack_from`",
        "default.yaml",
    ),
    "no link": ("log_level: info\n", 1, "the file", "missing required field `link`", "default"),
    "a choice that is none": (
        "link:\n  ack_from: nobody\n",
        2,
        "link.ack_from",
        "nobody",
        "choose one of",
    ),
    "an unknown kind of source": (
        f"{LINK}audio:\n  sources:\n    - kind: tape\n      name: a\n",
        5,
        "audio.sources[0].kind",
        "unknown kind 'tape'",
        "file, folder, loop, microphone",
    ),
    "a source of no kind": (
        f"{LINK}audio:\n  sources:\n    - name: a\n",
        5,
        "audio.sources[0]",
        "missing required field `kind`",
        "default.yaml",
    ),
    "a source without its path": (
        f"{LINK}audio:\n  sources:\n    - {{kind: folder, name: a}}\n",
        5,
        "audio.sources[0]",
        "missing required field `path`",
        "default.yaml",
    ),
    "a key twice": (
        f"{LINK}store:\n  path: a\n  path: b\n",
        5,
        "path",
        "written twice",
        "keep one",
    ),
    "a section twice": (f"{LINK}{LINK}", 3, "link", "written twice", "keep one"),
    "two sources of one name": (
        f"{LINK}audio:\n  sources:\n{FOLDER}{FOLDER}",
        9,
        "audio.sources[1].name",
        "'inbox' is taken by another source",
        "a name of its own",
    ),
    "too little": (
        f"{LINK}store:\n  bytes_max: 1\n",
        4,
        "store.bytes_max",
        "expected `int` >= 1048576; found 1",
        "schema.json",
    ),
    "too much": (
        f"{LINK}audio:\n  chunk_s: 2\n",
        4,
        "audio.chunk_s",
        "expected `float` <= 0.5; found 2",
        "schema.json",
    ),
    "not a number": (
        f"{LINK}  heartbeat_s: .nan\n",
        3,
        "link.heartbeat_s",
        "expected `float` >= 0.01; found nan",
        "schema.json",
    ),
    "closing above opening": (
        f"{LINK}audio:\n  segments:\n    open_probability: 0.3\n    close_probability: 0.5\n",
        6,
        "audio.segments.close_probability",
        "0.5 is above open_probability 0.3",
        "lower close_probability",
    ),
    "the shortest pause above the longest": (
        f"{LINK}  backoff_s_min: 9\n  backoff_s_max: 1\n",
        3,
        "link.backoff_s_min",
        "above backoff_s_max",
        "swap",
    ),
    "a broker without a scheme": (
        f"{LINK}  broker_url: broker.example:1883\n",
        3,
        "link.broker_url",
        "expected mqtt://HOST, mqtts://HOST or either with :PORT",
        "default.yaml",
    ),
    "a name that is no name": (
        f"{LINK}audio:\n  sources:\n    - {{kind: loop, name: My Mic, path: x}}\n",
        5,
        "audio.sources[0].name",
        "expected a name of 1 to 32 letters",
        "default.yaml",
    ),
    "a port that is none": (
        f"{LINK}  broker_url: mqtt://broker.example:99999\n",
        3,
        "link.broker_url",
        "with :PORT, 1 to 65535; found 'mqtt://broker.example:99999'",
        "default.yaml",
    ),
    "an ingest behind the embedded broker": (
        "link:\n  ack_from: ingest\n",
        2,
        "link.ack_from",
        "the embedded broker has no ingest behind it",
        "link.broker_url",
    ),
    "a grant from the embedded broker": (
        "link: {ack_from: broker, blobs_by: put}\n",
        1,
        "link.blobs_by",
        "the embedded broker has no cloud behind it",
        "link.broker_url",
    ),
    "a password for nobody": (
        f"{LINK}  broker_url: mqtt://b\n  password_file: x\n",
        4,
        "link.password_file",
        "no effect without link.username",
        "username",
    ),
    "an authority without TLS": (
        f"{LINK}  broker_url: mqtt://b\n  ca_file: x\n",
        4,
        "link.ca_file",
        "no effect without TLS",
        "mqtts://",
    ),
    "a source that is none": (
        f"{LINK}updates:\n  urls:\n  - stick\n",
        5,
        "updates.urls[0]",
        "http://HOST",
        "schema.json",
    ),
    "a rest that is none": (
        f"{LINK}  heartbeat_s: 0.000001\n",
        3,
        "link.heartbeat_s",
        "expected `float` >= 0.01",
        "schema.json",
    ),
    "a profile that is none": (
        f"{TRIED}power:\n  profile: low\n",
        4,
        "power.profile",
        "no profile is called 'low'",
        "there is none",
    ),
    "a mode that no board has": (
        f"{TRIED}power:\n  profiles:\n    low:\n      nvpmodel: 99\n",
        6,
        "power.profiles.low.nvpmodel",
        "<= 15; found 99",
        "schema.json",
    ),
    "a rule that does not say when": (
        f"{TRIED}power:\n  profiles: {{low: {{}}}}\n  rules:\n"
        "    - {profile: low, begin: '22:00'}\n",
        6,
        "power.rules[0]",
        "does not say when",
        "begin and end",
    ),
    "a rule that says it twice": (
        f"{TRIED}power:\n  profiles: {{low: {{}}}}\n  rules:\n"
        "    - {profile: low, above_c: 90, battery_below: 0.5}\n",
        6,
        "power.rules[0]",
        "says it twice",
        "set one",
    ),
    "a mode that nothing sets back": (
        f"{TRIED}power:\n  profiles: {{low: {{nvpmodel: 1}}}}\n  rules:\n"
        "    - {profile: low, above_c: 90}\n",
        6,
        "power.rules[0].profile",
        "nothing would set it back",
        "power.profile",
    ),
    "a profile in which nobody hears": (
        f"{TRIED}power:\n  profiles:\n    low:\n      rest: [audio]\n",
        6,
        "power.profiles.low.rest",
        "hears, as long as this agent runs",
        "may wait",
    ),
    "a rest of a domain that is none": (
        f"{TRIED}power:\n  profiles:\n    low:\n      rest: [pictures]\n",
        6,
        "power.profiles.low.rest",
        "no domain is called 'pictures'",
        "there is none",
    ),
    "a port in letters": (
        f"{LINK}  broker_url: mqtt://broker.example:mqtt\n",
        3,
        "link.broker_url",
        "with :PORT, 1 to 65535",
        "default.yaml",
    ),
}


def mistake(folder: Path, content: str | bytes) -> ConfigError:
    """Load a file of this content, which must not load."""
    path = folder / "holdfast.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == 78
    assert str(caught.value).startswith(str(path)), "the file is not named"
    assert caught.value.hint, "there is no hint"
    return caught.value


def test_the_shipped_configuration_is_right() -> None:
    settings = load(DEFAULT)
    assert settings.link.ack_from == "broker"
    assert [source.name for source in settings.audio.sources] == ["sample", "inbox"]


def test_the_shipped_schema_is_that_of_the_code() -> None:
    assert SCHEMA.read_bytes() == config.schema(), "run: python -m agent.config >config/schema.json"


def test_a_file_with_nothing_but_who_acks_takes_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.yaml"
    path.write_text("link:\n  ack_from: broker\n")
    assert load(path) == config.Config(link=config.Link(ack_from="broker"))


def test_an_authority_may_be_for_updates_alone(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.yaml"
    path.write_text(
        f"{LINK}  broker_url: mqtt://b\n  ca_file: x\nupdates:\n  urls: ['https://u.example']\n"
    )
    assert load(path).link.ca_file == "x"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_file_line_key_expectation_and_remedy(tmp_path: Path, name: str) -> None:
    text, line, key, expected, hint = MISTAKES[name]
    error = mistake(tmp_path, text)
    assert str(error).startswith(f"{tmp_path / 'holdfast.yaml'}:{line}: {key}: ")
    assert expected in str(error)
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("link:\n  ack_from: nobody\n", ("ingest", "broker")),
        (f"{LINK}log_level: loud\n", ("debug", "info", "warning", "error")),
        (f"{LINK}api:\n  host: plant\n", ("IPv4 or IPv6", "0.0.0.0 or ::")),
    ],
)
def test_a_wrong_choice_is_answered_with_the_right_ones(
    tmp_path: Path, text: str, choices: tuple[str, ...]
) -> None:
    error = mistake(tmp_path, text)
    for choice in choices:
        assert choice in f"{error} {error.hint}"


def test_broken_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    assert "line 3" in str(mistake(tmp_path, f"{LINK}audio: [1\n"))


@pytest.mark.parametrize("content", ["", "# nothing\n", "- a\n- list\n", "a sentence\n", "3\n"])
def test_a_file_without_sections_is_refused(tmp_path: Path, content: str) -> None:
    assert "expected sections such as `link:`" in str(mistake(tmp_path, content))


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01\x01\x00\xff\xfe", b"\x00\x00", b"\xff\xd8"])
def test_a_binary_file_is_refused(tmp_path: Path, content: bytes) -> None:
    mistake(tmp_path, content)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"absent\.yaml: cannot be read: .*No such file"
    ) as caught:
        load(tmp_path / "absent.yaml")
    assert "--config" in caught.value.hint


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*Is a directory"):
        load(tmp_path)


def test_a_password_in_the_broker_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    error = mistake(tmp_path, f"{LINK}  broker_url: mqtt://me:hunter2@broker.example\n")
    assert "link.broker_url" in str(error)
    assert "hunter2" not in f"{error} {error.hint}"


def test_a_name_that_begins_with_a_digit_is_not_taken_for_a_number_with_a_unit(
    tmp_path: Path,
) -> None:
    source = "    - {kind: loop, name: 2ND, path: x}\n"
    assert "unit" not in str(mistake(tmp_path, f"{LINK}audio:\n  sources:\n{source}"))


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("audio: {segments: {margin_s: .inf}}", "audio.segments.margin_s"),
        ("audio: {segments: {margin_s: 9, length_s_max: 5}}", "audio.segments.margin_s"),
        ("audio: {segments: {hangover_s: .inf}}", "audio.segments.hangover_s"),
        ("store: {bytes_max: 9223372036854775808}", "store.bytes_max"),
        (
            "store: {streams: [{match: x, bytes_max: 9223372036854775808}]}",
            "store.streams[0].bytes_max",
        ),
        (
            "domains: {audio: {models: [speech], restart_s_min: 9, restart_s_max: 1}}",
            "domains.audio.restart_s_min",
        ),
        ("audio: {segments: {speech_s_min: 9, length_s_max: 5}}", "audio.segments.speech_s_min"),
    ],
)
def test_numbers_that_cannot_work_are_refused(tmp_path: Path, section: str, key: str) -> None:
    assert key in str(mistake(tmp_path, f"{LINK}{section}\n"))


def test_volatile_streams_that_carry_no_sound_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for rules in (
        "[{match: '*.telemetry', durability: volatile}]",
        "[{match: '*.raw'}, {match: '*.segments'}, {match: '*', durability: volatile}]",
        "[{match: '*', durability: group}, {match: '*', durability: volatile}]",
    ):
        path.write_text(f"{LINK}  broker_url: mqtt://b\nstore: {{streams: {rules}}}\n")
        assert load(path).store.streams


def test_the_reference_profile_is_valid_and_is_the_reference_picture() -> None:
    domains = load(REFERENCE).domains_all
    picture = {name: (one.class_, one.devices, one.gpu_share) for name, one in domains.items()}
    assert picture == {
        "audio": ("realtime", ["cpu"], None),
        "voice": ("realtime", ["cpu"], None),
        "llm": ("realtime", ["tensorrt", "cuda"], 0.7),
        "images": ("batch", ["tensorrt", "cuda"], 0.3),
    }
    assert domains["audio"].models == ["speech"], "the domain that hears, with the shipped model"
    assert all(one.memory_bytes_max for one in domains.values())
