"""The catalogue is what is documented, and each verb can be told."""

from agent.protocol.commands import Command
from tests.commands.catalogued import PAGE, page, verbs


def test_the_page_is_as_the_verbs_are() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "python -m tests.commands.catalogued"


def test_each_verb_has_a_name_that_a_command_may_have_and_says_what_it_takes() -> None:
    for one in verbs():
        assert Command(id="x", name=one.name).name == one.name
        assert one.summary.endswith(".")
        assert one.args.get("additionalProperties") is False, one.name
        assert one.args.get("description") or not one.args.get("properties"), one.name
