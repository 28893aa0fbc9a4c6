"""Examples, criteria, rubrics and principles from files, and the draw of what a pair is asked with."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.config import UserError
from rlaif_ray.judge.material import (
    Material,
    Principle,
    draw,
    load_constitution,
    load_criteria,
    load_examples,
    load_material,
    load_principles,
    load_revision_examples,
    load_rubric,
)
from rlaif_ray.judge.material_files import SHIPPED

EXAMPLE = {"prompt": "Say hello.", "answer_a": "Hello!", "answer_b": "Go away.", "better": "a"}
LEVELS = {str(level): f"Level {level}." for level in range(1, 6)}
CRITERION = {"name": "manners", "question": "Is it kind?", "levels": LEVELS}
PRINCIPLE = {"id": "kind", "text": "Be kind.", "critique": "Is the answer kind?", "revision": "Make it kind."}
REVISION = {
    "prompt": "Say hello.",
    "answer": "Go away.",
    "critique_request": "Is the answer kind?",
    "critique": "It is not.",
    "revision_request": "Make it kind.",
    "revision": "Hello!",
}


def test_shipped_files_load_by_name() -> None:
    material = load_material(
        examples="examples-quality", criteria="criteria-quality", rubric="rubric-quality", principles="principles"
    )
    assert len(material.principles) >= 8
    assert all(sorted(criterion.levels) == [1, 2, 3, 4, 5] for criterion in material.rubric)
    # Neither the position in the file nor the length gives the better answer away.
    assert Counter(example.better for example in material.examples) == {"a": 2, "b": 2}
    longer = ["a" if len(example.answer_a) > len(example.answer_b) else "b" for example in material.examples]
    assert sum(example.better == side for example, side in zip(material.examples, longer, strict=True)) == 2
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == {
        "examples-quality",
        "criteria-quality",
        "rubric-quality",
        "principles",
        "revisions",
        "discretion",
    }


def test_the_shipped_constitution_is_one_to_revise_by() -> None:
    constitution = load_constitution("principles")
    assert len(constitution) >= 16
    assert [principle.id for principle in constitution] == [one.id for one in load_principles("principles")]
    assert {"harm", "privacy", "honesty", "helpfulness"} <= {tag for one in constitution for tag in one.tags}
    examples = load_revision_examples("revisions")
    assert len(examples) >= 4
    # A model that is shown faults alone finds some in every answer.
    assert Counter(example.answer == example.revision for example in examples) == {False: len(examples) - 1, True: 1}


def test_a_judge_is_not_told_of_requests(tmp_path: Path) -> None:
    """They are none of what it reads, and no change of them is one of its question."""
    judged = Material(principles=(Principle(id="kind", text="Be kind."),))
    revised = Material(principles=(Principle(id="kind", text="Be kind.", critique="Is it?", revision="Make it."),))
    heavier = Material(principles=(Principle(id="kind", text="Be kind.", weight=2.0),))
    assert judged.hash == revised.hash != heavier.hash


def test_a_file_of_ones_own_is_yaml_or_json(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("- Be kind.\n- '  Be true.  '\n")
    assert load_criteria(str(tmp_path / "mine.yaml")) == ("Be kind.", "Be true.")
    (tmp_path / "mine.json").write_text(json.dumps([CRITERION | {"weight": 2}]))
    (criterion,) = load_rubric(str(tmp_path / "mine.json"))
    assert (criterion.weight, criterion.levels[5]) == (2.0, "Level 5.")


def test_texts_of_examples_are_kept_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([EXAMPLE | {"answer_a": "  Hello!\n\n"}]))
    assert load_examples(str(path))[0].answer_a == "  Hello!\n\n"


def test_the_hash_names_all_that_the_judge_is_shown() -> None:
    hashes = {
        load_material().hash,
        load_material(examples="examples-quality").hash,
        load_material(criteria="criteria-quality").hash,
        load_material(rubric="rubric-quality").hash,
        load_material(principles="principles").hash,
        Material(criteria=("Be kind.",)).hash,
        Material(criteria=("Be kind!",)).hash,
    }
    assert len(hashes) == 7
    assert load_material(principles="principles").hash == load_material(principles="principles").hash


@pytest.mark.parametrize(
    ("load", "items", "sentence"),
    [
        (load_examples, [], r": must be a list with at least one item"),
        (load_examples, {"prompt": "Say hello."}, r": must be a list"),
        (load_examples, None, r": must be a list"),
        (load_examples, [EXAMPLE, {"prompt": "Say."}], r", item 2, answer_a: is missing; write it"),
        (load_examples, [EXAMPLE | {"better": "c"}], r", item 1, better: Input should be 'a' or 'b', not 'c'"),
        (load_examples, [EXAMPLE | {"answer": "x"}], r", item 1, answer: is not a known key; did you mean answer_"),
        (load_examples, [EXAMPLE | {"answer_b": " \n"}], r", item 1, answer_b: must not be blank"),
        (load_examples, [EXAMPLE | {"prompt": 7}], r", item 1, prompt: must be a text, not 7; write one, in quotes"),
        (load_examples, [EXAMPLE | {"answer_b": "Hello!"}], r", item 1: answer_a and answer_b are the same"),
        (load_examples, [EXAMPLE, EXAMPLE], r", items 1 and 2 are the same pair"),
        (load_examples, [EXAMPLE, EXAMPLE | {"better": "b"}], r", items 1 and 2 contradict each other"),
        (
            load_examples,
            [EXAMPLE, EXAMPLE | {"answer_a": "Go away.", "answer_b": "Hello!"}],
            r", items 1 and 2 contradict each other",
        ),
        (
            load_examples,
            [EXAMPLE, EXAMPLE | {"answer_a": "Go away.", "answer_b": "Hello!", "better": "b"}],
            r", items 1 and 2 are the same pair",
        ),
        (load_criteria, ["Be kind.", 7], r", item 2: must be a text, not 7; write one, in quotes"),
        (load_criteria, ["Be kind.", "Be true.", "Be kind."], r", items 1 and 3 have the same text 'Be kind\.'"),
        (load_rubric, [CRITERION, CRITERION], r", items 1 and 2 have the same name 'manners'"),
        (load_rubric, [CRITERION | {"weight": 0}], r", item 1, weight: must be a number above 0, not 0"),
        (load_rubric, [CRITERION | {"weight": "inf"}], r", item 1, weight: must be a number above 0, not 'inf'"),
        (
            load_rubric,
            [CRITERION | {"levels": {"1": "Bad.", "5": "Good."}}],
            r", item 1, levels: must describe each of the levels 1, 2, 3, 4 and 5",
        ),
        (load_rubric, [CRITERION | {"levels": LEVELS | {"3": ""}}], r", item 1, levels, 3: must not be blank"),
        (load_principles, [{"id": "kind", "text": ""}], r", item 1, text: must not be blank"),
        (
            load_principles,
            [{"id": "kind", "text": "Be kind."}, {"id": "kind", "text": "Be true."}],
            r", items 1 and 2 have the same id 'kind'",
        ),
        (load_constitution, [{"id": "kind", "text": "Be kind."}], r", item 1, critique: is missing; write it"),
        (load_constitution, [PRINCIPLE | {"revision": ""}], r", item 1, revision: must not be blank"),
        (load_constitution, [PRINCIPLE, PRINCIPLE], r", items 1 and 2 have the same id 'kind'"),
        (load_revision_examples, [REVISION | {"note": "x"}], r", item 1, note: is not a known key; known here: prompt"),
        (load_revision_examples, [REVISION | {"revision": "It is not."}], r", item 1: critique and revision are the"),
        (load_revision_examples, [REVISION, REVISION], r", items 1 and 2 have the same prompt 'Say hello\.'"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, load, items, sentence: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(items))
    with pytest.raises(UserError, match="^" + str(path) + sentence) as error:
        load(str(path))
    assert "\n" not in str(error.value)


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- Be kind.\n- Be true: always: so.\n")
    with pytest.raises(UserError, match=rf"^{path}, line 2: is not YAML \(mapping values are not allowed here\)"):
        load_criteria(str(path))


def test_a_key_that_stands_twice_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- id: kind\n  text: Be kind.\n  text: Be true.\n")
    with pytest.raises(UserError, match=rf"^{path}, line 3: is not YAML \('text' stands there twice\)"):
        load_principles(str(path))


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"- caf\xe9\n")
    with pytest.raises(UserError, match=f"^{path}: cannot be read as YAML in UTF-8"):
        load_criteria(str(path))


def test_a_missing_file_names_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"^judge\.rubric: no file 'nope' and none shipped .*\(rubric-quality\)"):
        load_rubric("nope")
    with pytest.raises(UserError, match=r"^constitution\.principles: no file 'nope' and none .*\(principles\)"):
        load_constitution("nope")
    with pytest.raises(UserError, match=r"^constitution\.examples: no file 'nope' and none .*\(revisions\)"):
        load_revision_examples("nope")


@given(st.integers(), st.text(), st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.data())
def test_a_draw_is_without_repetition_and_grows_by_adding(
    seed: int, key: str, weights: list[float], data: st.DataObject
) -> None:
    items = range(len(weights))
    count = data.draw(st.integers(0, len(weights)))
    drawn = draw(items, seed, key, count, weights)
    assert len(set(drawn)) == count
    assert drawn == draw(items, seed, key, count, weights)
    assert draw(items, seed, key, len(weights), weights)[:count] == drawn


def test_a_draw_is_the_same_on_every_machine() -> None:
    """Held against what it was when written: a change would ask a rerun's pairs anew."""
    assert [draw("abcd", 7, f"principles/{pair}", 2) for pair in range(4)] == [
        ("d", "b"),
        ("b", "c"),
        ("b", "c"),
        ("b", "c"),
    ]


def test_a_draw_respects_weights() -> None:
    """Of 20,000 draws with weights 3 and 1 the first item has 15,000, give or take 5 standard deviations of 61."""
    counts = Counter(draw("ab", 7, f"principles/{pair}", 1, [3.0, 1.0])[0] for pair in range(20_000))
    assert abs(counts["a"] - 15_000) < 5 * 61


def test_keys_and_seeds_draw_independently() -> None:
    """Two fair choices of two agree in half of 10,000 cases, give or take 5 standard deviations of 50."""
    of_templates = [draw("ab", 7, f"templates/{pair}", 1) for pair in range(10_000)]
    of_principles = [draw("ab", 7, f"principles/{pair}", 1) for pair in range(10_000)]
    of_another_seed = [draw("ab", 8, f"templates/{pair}", 1) for pair in range(10_000)]
    for others in (of_principles, of_another_seed):
        assert abs(sum(one == other for one, other in zip(of_templates, others, strict=True)) - 5_000) < 5 * 50


def test_more_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="cannot draw 3 of 2"):
        draw("ab", 7, "principles/pair", 3)
