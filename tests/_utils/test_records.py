import pytest

from gas_ext._utils.records import COUNT, NUMBER, SHAPE, SIZE, TEXT, Field, check_record, parse_json, shown

FIELDS = {"steps": SIZE, "scale": NUMBER, "shape": SHAPE, "teacher": Field((dict,), inside={"name": TEXT})}
RECORD = {"steps": 3, "scale": 1.5, "shape": [1, 2], "teacher": {"name": "a"}, "unknown": None}


def test_a_record_as_it_should_be():
    assert check_record(RECORD, FIELDS, "a.json") is RECORD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": True}, "'steps' is True, but must be an int of at least 1 and at most"),
        ({"steps": 2**62}, "'steps' is 4611686018427387904, but"),
        ({"scale": float("nan")}, "'scale' is nan, but must be an int or float"),
        ({"scale": 10**400}, "'scale' is 1000"),
        ({"scale": 10**5000}, "'scale' is an integer of 16610 bits"),
        ({"shape": [1, 0]}, r"'shape'\[1\] is 0, but must be an int of at least 1"),
        ({"teacher": {}}, "'teacher'.name is missing"),
        ({"teacher": None}, "'teacher' is None, but must be a dict"),
    ],
)
def test_a_fault_is_named_in_one_short_sentence(change, message):
    with pytest.raises(ValueError, match=rf"a\.json is damaged: its field {message}") as caught:
        check_record({**RECORD, **change}, FIELDS, "a.json")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 5000, b"\xff"])
def test_what_is_not_json(text):
    with pytest.raises(ValueError, match=r"a\.json is damaged"):
        parse_json(text, "a.json")


def test_bounds_include_their_ends():
    assert list(COUNT.faults(0, "n")) == []
    assert list(COUNT.faults(-1, "n")) == [
        "n is -1, but must be an int of at least 0 and at most 1.09951e+12"
    ]


def test_values_in_messages_are_short():
    assert len(shown(["x" * 1000] * 1000)) == 80
