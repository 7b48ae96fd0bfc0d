import pytest

from zeno_fast.errors import ProtocolError
from zeno_fast.slots import parse_slots

DEFINITION = {
    "name": "php.run",
    "description": "Run a script.",
    "example": "php.run(script: 'index.php')",
    "inputs": {
        "script": {"type": "String", "required": True, "description": "File to run"},
        "limit": {"type": "int", "required": False, "default": 10},
    },
    "outputs": {"status": {"type": "string"}},
}


def only(raw):
    slots = parse_slots(raw, "p")
    assert slots is not None
    assert len(slots) == 1
    return slots[0]


@pytest.mark.parametrize(
    "raw",
    [
        [DEFINITION],
        {"slots": [DEFINITION]},
        {"data": {"slots": [DEFINITION]}},
        {"success": True, "data": [DEFINITION], "error": None},
        {"slots": {"php.run": {key: DEFINITION[key] for key in DEFINITION if key != "name"}}},
    ],
)
def test_a_list_of_slots_is_found_wherever_guests_put_it(raw):
    slot = only(raw)
    assert (slot.name, slot.plugin) == ("php.run", "p")
    assert slot.description == "Run a script."
    assert slot.example.startswith("php.run(")
    assert slot.outputs == {"status": {"type": "string"}}
    script, limit = slot.inputs["script"], slot.inputs["limit"]
    assert (script.type, script.required, script.has_default) == ("string", True, False)
    assert (limit.type, limit.required, limit.has_default, limit.default) == (
        "int",
        False,
        True,
        10,
    )


@pytest.mark.parametrize(
    "raw", [None, "Unknown slot", {"error": "Unknown slot"}, {}, {"slots": None}, 5, True]
)
def test_an_answer_that_lists_no_slots_is_none(raw):
    assert parse_slots(raw, "p") is None


@pytest.mark.parametrize("raw", [[], {"slots": []}, {"data": []}])
def test_an_empty_list_is_no_slots_and_not_none(raw):
    assert parse_slots(raw, "p") == ()


@pytest.mark.parametrize("definition", ["a", {"name": "a"}, {"name": "a", "inputs": None}])
def test_inputs_may_be_missing_or_null(definition):
    assert only([definition]).inputs == {}


@pytest.mark.parametrize(
    ("inputs", "type", "required", "has_default"),
    [
        ({"x": None}, "", False, False),
        ({"x": "String"}, "string", False, False),
        ({"x": {}}, "", False, False),
        ({"x": {"type": None, "required": None}}, "", False, False),
        ({"x": {"type": ["string", "null"], "required": "true"}}, "", True, False),
        ({"x": {"type": " INT ", "required": 1, "default": 0}}, "int", True, True),
        ({"x": {"type": "bool", "default": False}}, "bool", False, True),
        ([{"name": "x", "type": "string", "required": True}], "string", True, False),
        (["x"], "", False, False),
        (
            {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]},
            "string",
            True,
            False,
        ),
    ],
)
def test_inputs_are_read_in_every_form_that_guests_send(inputs, type, required, has_default):
    found = only([{"name": "a", "inputs": inputs}]).inputs
    assert list(found) == ["x"]
    definition = found["x"]
    assert (definition.type, definition.required, definition.has_default) == (
        type,
        required,
        has_default,
    )


def test_what_a_guest_lists_may_hold_keys_types_and_defaults_that_a_manifest_may_not():
    definition = only([{"name": "a", "icon": "x", "inputs": {"x": {"type": "zahl", "default": 1}}}])
    assert (definition.inputs["x"].type, definition.inputs["x"].default) == ("zahl", 1)
    definition = only([{"name": "a", "inputs": {"x": {"type": "int", "default": "five"}}}])
    assert definition.inputs["x"].default == "five"


def test_a_null_default_is_no_default_so_that_required_stays_required():
    definition = only([{"name": "a", "inputs": {"x": {"required": True, "default": None}}}])
    assert not definition.inputs["x"].has_default


def test_texts_that_are_no_strings_are_shown_as_json():
    slot = only([{"name": "a", "description": None, "example": {"x": [1, "ü"]}}])
    assert slot.description == ""
    assert slot.example == '{"x": [1, "ü"]}'


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([5], r"\[0\]: found 5"),
        ([{"description": "nameless"}], r"\[0\]: has no `name`"),
        ([{"name": ""}], "has no `name`"),
        ([{"name": "  "}], "name of a slot"),
        ([{"name": 7}], "`name` is 7"),
        ({"slots": [{"name": "a", "inputs": 3}]}, r"slots\[0\].inputs: found 3"),
        ([{"name": "a", "inputs": {"x": 3}}], r"\[0\].inputs.x: found 3"),
        ([{"name": "a", "inputs": {"": {}}}], "name of a parameter"),
        ([{"name": "a", "inputs": [{"type": "int"}]}], r"inputs\[0\]: has no `name`"),
        ([{"name": "a", "inputs": ["x", "x"]}], "listed twice"),
        ([{"name": "a", "inputs": {"x": {"required": "perhaps"}}}], "true or false"),
        ([{"name": "a"}, {"name": "a"}], "`a` is listed twice"),
    ],
)
def test_a_list_that_cannot_be_understood_names_plugin_and_place(raw, words):
    with pytest.raises(ProtocolError, match=words) as caught:
        parse_slots(raw, "my-plugin")
    assert "'my-plugin'" in str(caught.value)
    assert caught.value.plugin == "my-plugin"
