"""What lies between two configurations, and merge patches."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import config_file
from agent.errors import ConfigError
from agent.versions.plan import Hot, _merged, check_pinned, patched, plan
from tests.versions.site import FIRST, document


def settings(**changes: Any) -> Any:
    return config_file.parse(document(**changes), Path("x"))


# The examples of RFC 7396, Appendix A, that are objects at the top.
RFC = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "result"), RFC)
def test_a_patch_is_merged_as_the_rfc_has_it(target: Any, patch: Any, result: Any) -> None:
    assert _merged(target, patch) == result


def test_a_patched_document_has_the_values_and_says_where_the_comments_are() -> None:
    made = patched(FIRST.encode(), {"log_level": None, "jobs": {"jobs_max": 7}}, 4)
    assert yaml.safe_load(made) == {"link": {"ack_from": "broker"}, "jobs": {"jobs_max": 7}}
    assert b"by hand" not in made
    assert b"version 4" in made.splitlines()[0]
    assert patched(FIRST.encode(), {"log_level": "info"}, 4) == FIRST.encode(), "nothing changes"


def test_a_plan_names_the_sections_and_which_of_them_take_a_restart() -> None:
    async def change(_: Any) -> None:
        raise AssertionError

    hot = {
        "log_level": Hot(lambda _, __: "", change),
        "link": Hot(lambda _, after: "" if after.link.broker_url else "no broker", change),
    }
    after = settings(log_level="debug", jobs={"jobs_max": 7}, link={"ack_from": "broker"})
    found = plan(settings(), after, hot)
    assert found.changed == ("jobs", "log_level")
    assert found.restart == {"jobs": "it is read at the start alone"}
    far = {"ack_from": "broker", "broker_url": "mqtt://far"}
    assert plan(settings(), settings(link=far), hot) == (("link",), {})
    assert plan(settings(link=far), settings(), hot).restart == {"link": "no broker"}
    assert plan(settings(), settings(), hot) == ((), {})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"device_id": "another"}, "device_id"),
        ({"store": {"path": "elsewhere.db"}}, "store.path"),
        ({"api": {"socket": "elsewhere.sock"}}, "api.socket"),
    ],
)
def test_what_an_agent_is_found_by_is_for_its_file_alone(change: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=key) as refused:
        check_pinned(settings(), settings(**change), Path("/etc/holdfast/config.yaml"))
    assert "/etc/holdfast/config.yaml" in refused.value.hint
    check_pinned(settings(), settings(log_level="debug"), Path("x"))
