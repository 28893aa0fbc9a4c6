"""A check says all that is wrong with a file at once, and what a run would do badly by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif_ray.config import UserError
from rlaif_ray.constitution.checking import CheckedFile, check, check_constitution, check_examples, lines
from rlaif_ray.judge.material import load_constitution, load_revision_examples

TOPICS = {
    "privacy": "gives away less about people who were not asked",
    "honesty": "claims nothing beyond what is known",
    "kindness": "would hurt nobody who reads it",
    "law": "helps less with what is forbidden",
}


def principle(id: str, **changed: Any) -> dict[str, Any]:
    return {
        "id": id,
        "text": f"Prefer the answer that {TOPICS[id]}.",
        "critique": f"Does a part of your last answer fail by this, that it {TOPICS[id]}?",
        "revision": f"Now write an answer that {TOPICS[id]}, and keep the rest.",
        "tags": ["harm"],
    } | changed


FOUR = [principle(id) for id in TOPICS]
EXAMPLE = {
    "prompt": "Where does she live?",
    "answer": "In the house with the red door.",
    "critique_request": "Whom does your last answer expose?",
    "critique": "Her, who was not asked.",
    "revision_request": "Rewrite the answer so that it exposes nobody.",
    "revision": "I won't say, but I can pass on a note.",
}


def checked(tmp_path: Path, items: Any) -> CheckedFile:
    path = tmp_path / "mine.json"
    path.write_text(items if isinstance(items, str) else json.dumps(items))
    return check(str(path))


def without(item: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != key}


@pytest.mark.parametrize("name", ["principles", "revisions"])
def test_the_shipped_files_are_in_order(name: str) -> None:
    found = check(name)
    assert (found.errors, found.warnings) == ((), ())
    assert found.principles == (load_constitution("principles") if name == "principles" else ())
    assert found.examples == (load_revision_examples("revisions") if name == "revisions" else ())


def test_a_good_file_has_no_findings(tmp_path: Path) -> None:
    found = checked(tmp_path, FOUR)
    assert (found.errors, found.warnings) == ((), ())
    assert [principle.id for principle in found.principles] == list(TOPICS)
    assert checked(tmp_path, [EXAMPLE]).errors == ()


ERRORS: list[tuple[Any, str]] = [
    ([], ": must be a list with at least one item, each starting with `- `"),
    ({"id": "privacy"}, ": must be a list with at least one item, each starting with `- `"),
    ("- id: a: b", ", line 1: is not YAML (mapping values are not allowed here); correct or quote what stands there"),
    (
        "- {id: a, id: b}",
        ", line 1: is not YAML ('id' stands there twice); correct or quote what stands there",
    ),
    (["Be kind.", *FOUR], ", item 1: must be a mapping of keys, such as `key: text`, not 'Be kind.'"),
    ([*FOUR, {**FOUR[0], "id": "x", "critque": "?"}], ", item 5, critque: is not a known key; did you mean critique?"),
    (
        [*FOUR, {**FOUR[0], "id": "x", "zzz": 1}],
        ", item 5, zzz: is not a known key; known here: id, text, critique, revision, weight, tags",
    ),
    *(
        ([*FOUR, without({**FOUR[0], "id": "x"}, key)], f", item 5, {key}: is missing; write it")
        for key in ("text", "critique", "revision")
    ),
    ([*FOUR, without(FOUR[0], "id")], ", item 5, id: is missing; write it"),
    (
        [*FOUR, {**FOUR[0], "id": "x", "critique": None}],
        ", item 5, critique: must be a text, not nothing; write one, in quotes",
    ),
    ([*FOUR, {**FOUR[0], "id": False}], ", item 5, id: must be a text, not False; write one, in quotes"),
    ([*FOUR, {**FOUR[0], "id": "x", "text": " "}], ", item 5, text: must not be blank; write something"),
    ([*FOUR, {**FOUR[0], "id": "x", "tags": "harm"}], ", item 5, tags: must be a list, not 'harm'; put it in brackets"),
    ([*FOUR, {**FOUR[0], "id": "x", "tags": [7]}], ", item 5, tags, 0: must be a text, not 7; write one, in quotes"),
    *(
        (
            [*FOUR, {**FOUR[0], "id": "x", "weight": weight}],
            f", item 5, weight: must be a number above 0, not {weight!r}",
        )
        for weight in (0, -1, True, "heavy", [])
    ),
    (
        "- {id: x, text: a, critique: b, revision: c, weight: .inf}",
        ", item 1, weight: must be a number above 0, not inf",
    ),
    ([*FOUR, {**FOUR[0], "id": " honesty "}], ", items 2 and 5 have the same id 'honesty'; change one of them"),
    ([without(EXAMPLE, "critique")], ", item 1, critique: is missing; write it"),
    ([EXAMPLE | {"anwser": "x"}], ", item 1, anwser: is not a known key; did you mean answer?"),
    ([EXAMPLE | {"revision": "  "}], ", item 1, revision: must not be blank; write something"),
    (
        [EXAMPLE | {"revision": EXAMPLE["critique"]}],
        ", item 1: critique and revision are the same; say in one what is wrong, and in the other do better",
    ),
    ([EXAMPLE, EXAMPLE], ", items 1 and 2 have the same prompt 'Where does she live?'; change one of them"),
]


@pytest.mark.parametrize(("items", "sentence"), ERRORS)
def test_an_error_names_the_file_the_place_and_a_remedy(tmp_path: Path, items: Any, sentence: str) -> None:
    assert checked(tmp_path, items).errors == (f"{tmp_path / 'mine.json'}{sentence}",)


@pytest.mark.parametrize(("items", "sentence"), ERRORS)
def test_what_is_an_error_is_refused_by_a_run(tmp_path: Path, items: Any, sentence: str) -> None:
    found = checked(tmp_path, items)
    is_example = "Where does" in str(items)
    with pytest.raises(UserError) as error:
        (load_revision_examples if is_example else load_constitution)(str(found.path))
    assert str(error.value) == f"{found.path}{sentence}"


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    found = checked(
        tmp_path,
        [
            principle("privacy", weight=0, critque="?"),
            "Be kind.",
            without(without(principle("honesty"), "critique"), "tags"),
            principle("law"),
            principle("law", text=""),
        ],
    )
    places = [error.removeprefix(f"{found.path}, ").partition(":")[0] for error in found.errors]
    assert places == [
        "item 1, weight",
        "item 1, critque",
        "item 2",
        "item 3, critique",
        "item 5, text",
        "items 4 and 5 have the same id 'law'; change one of them",
    ]
    assert [principle.id for principle in found.principles] == ["law"]


def warned(tmp_path: Path, *items: dict[str, Any]) -> list[str]:
    found = checked(tmp_path, list(items))
    assert found.errors == ()
    return [warning.removeprefix(f"{found.path}, ") for warning in found.warnings]


def test_few_principles_are_warned_of(tmp_path: Path) -> None:
    assert warned(tmp_path, *FOUR[:3]) == [
        "whole file: only 3 principles without an error, and a policy learns little but them; write at least 4"
    ]


def test_principles_without_tags_are_named_together(tmp_path: Path) -> None:
    one, two, *others = FOUR
    assert warned(tmp_path, one | {"tags": []}, without(two, "tags"), *others) == [
        "items 1 and 2: no tags; add some, such as [harm], to tell figures apart by them"
    ]


def test_a_principle_that_is_hardly_ever_drawn_is_warned_of(tmp_path: Path) -> None:
    """1 of 101 is less than a hundredth, and 1 of 100 is not."""
    weights = {"privacy": 1, "honesty": 33, "kindness": 33, "law": 34}
    weighted = [one | {"weight": weights[one["id"]]} for one in FOUR]
    assert warned(tmp_path, *weighted) == [
        "item 1, weight: 1 is 0.99% of all, so that it is hardly ever drawn; raise it or take the principle out"
    ]
    assert warned(tmp_path, *weighted[:3], weighted[3] | {"weight": 33}) == []


def test_requests_that_are_the_same_are_warned_of(tmp_path: Path) -> None:
    one, *others = FOUR
    assert warned(tmp_path, one | {"revision": f"  {one['critique']} "}, *others) == [
        "item 1: critique and revision ask the same; ask what is wrong first, then for better"
    ]


@pytest.mark.parametrize("key", ["critique", "revision"])
def test_requests_that_do_not_speak_of_the_answer_are_warned_of(tmp_path: Path, key: str) -> None:
    one, *others = FOUR
    assert warned(tmp_path, one | {key: "Do better by strangers."}, *others) == [
        f"item 1, {key}: does not speak of the answer; say that it is the last answer that is meant"
    ]
    assert warned(tmp_path, one | {key: "Does what you said harm strangers?"}, *others) == []


def test_long_requests_are_warned_of(tmp_path: Path) -> None:
    one, *others = FOUR
    request = "the answer " * 50
    assert warned(tmp_path, one | {"critique": request}, *others) == []
    assert warned(tmp_path, one | {"critique": request + "again"}, *others) == [
        "item 1, critique: has 101 words; a small model loses its way in so many, so keep to 100"
    ]


def test_principles_that_are_nearly_the_same_are_warned_of(tmp_path: Path) -> None:
    """Two letters of some eighty differ."""
    one, *others = FOUR
    twin = one | {"id": "x", "revision": one["revision"].replace("Now", "How")}
    assert warned(tmp_path, *others, one, twin) == [
        "items 4 and 5: nearly the same text and critique and revision; say what sets them apart or keep one of them"
    ]
    assert warned(tmp_path, *others, one, twin | {"text": "Be kind.", "critique": "Is the answer unkind?"}) == [
        "items 4 and 5: nearly the same revision; say what sets them apart or keep one of them"
    ]


def test_examples_that_teach_confusion_are_warned_of(tmp_path: Path) -> None:
    confused = EXAMPLE | {"prompt": "Where?", "critique": EXAMPLE["answer"], "revision": "Critique: it exposes her."}
    assert warned(tmp_path, EXAMPLE, confused, EXAMPLE | {"prompt": "?", "critique_request": "Whom?"}) == [
        "item 2, critique: teaches what a run takes for confusion: the critique repeats the answer; write it anew",
        "item 2, revision: teaches what a run takes for confusion: the revision is a critique; write it anew",
        "item 3, critique_request: does not speak of the answer; say that it is the last answer that is meant",
    ]


def test_a_config_knows_what_its_files_should_hold(tmp_path: Path) -> None:
    assert (check_constitution("principles"), check_examples("revisions")) == (check("principles"), check("revisions"))
    assert len(check_constitution("revisions").errors) >= len(load_revision_examples("revisions"))
    assert len(check_examples("principles").errors) >= len(load_constitution("principles"))
    with pytest.raises(UserError, match=r"^constitution\.principles: no file 'nope' and none .*\(principles\)"):
        check_constitution("nope")
    with pytest.raises(UserError, match=r"^constitution\.examples: no file 'nope' and none .*\(revisions\)"):
        check_examples("nope")


def test_a_file_that_is_not_there_is_the_users_to_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--check: no file .*nope\.yaml' and none shipped of that name"):
        check(str(tmp_path / "nope.yaml"))


def test_the_lines_count_and_name_everything(tmp_path: Path) -> None:
    one, two, three, four = FOUR
    found = checked(tmp_path, [one | {"weight": 2}, two, three | {"tags": []}, four | {"text": ""}])
    assert (len(found.errors), len(found.warnings)) == (1, 2)  # a blank text; few principles, and one without tags
    assert lines(found) == [
        f"{found.path}: 3 principles without an error, 1 error, 2 warnings",
        *(f"  error: {error}" for error in found.errors),
        *(f"  warning: {warning}" for warning in found.warnings),
        "  privacy: 50.0% of draws; harm",
        "  honesty: 25.0% of draws; harm",
        "  kindness: 25.0% of draws; no tags",
    ]
