"""Judge prompts: what is asked in each order and each way, and which files are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif_ray.config import UserError
from rlaif_ray.judge.material import Criterion, Example, Material, Principle, load_material
from rlaif_ray.judge.request import Form
from rlaif_ray.judge.template_files import SHIPPED
from rlaif_ray.judge.templates import SHIPPED_SCORES, load_score_template, load_template
from rlaif_ray.records import Message, Order, Pair, Prompt

PAIR = Pair("pair", Prompt("prompt", "Say hello."), "Hello!", "Go away.")
LABELS = '{% set labels = ["1", "2"] %}\n'
USER = "{% block user %}{{ prompt }} 1: {{ first }} 2: {{ second }}{% endblock %}\n"
TASKS = ("quality", "helpfulness", "harmlessness", "summarisation")

# What the toy world's judge was trained on. The mark is the first 8 hexadecimal digits of the SHA-256 of "0", the
# prompt, the first and the second answer, joined by zero bytes.
HEADLINES = """News:
begin_d7891b8d
Say hello.
end_d7891b8d
Summary 1:
begin_d7891b8d
Hello!
end_d7891b8d
Summary 2:
begin_d7891b8d
Go away.
end_d7891b8d
Better summary:"""


def text(messages: tuple[Message, ...]) -> str:
    return "\n".join(message.content for message in messages)


def test_the_toy_judge_reads_what_it_was_trained_on() -> None:
    assert load_template("headlines").question(PAIR, Order.AB).choose() == (Message("user", HEADLINES),)


def test_four_tasks_are_shipped_plain_with_reasoning_and_stepwise_and_as_scores() -> None:
    for task in TASKS:
        plain, cot, stepwise = (load_template(task + kind) for kind in ("", "-cot", "-stepwise"))
        assert [plain.reasons, cot.reasons, stepwise.reasons] == [False, True, True]
        assert [plain.labels, cot.labels, stepwise.labels] == [("1", "2"), ("1", "2"), ("A", "B")]
        assert load_score_template(f"{task}-score").scale == (1, 10)
    assert len({load_template(path.stem).hash for path in SHIPPED.glob("*.j2")}) == 3 * len(TASKS) + 2


@pytest.mark.parametrize("name", [path.stem for path in SHIPPED.glob("*.j2")])
def test_shipped_templates_ask_about_both_answers_in_either_order(name: str) -> None:
    template = load_template(name)
    ab, ba = (template.question(PAIR, order) for order in (Order.AB, Order.BA))
    for ask in ("choose", "reason"):
        shown = text(getattr(ab, ask)())
        assert shown.index("Say hello.") < shown.index("Hello!") < shown.index("Go away.")
        shown = text(getattr(ba, ask)())
        assert shown.index("Say hello.") < shown.index("Go away.") < shown.index("Hello!")
    choose, reason = ab.choose(), ab.reason()
    assert choose[:-1] == reason[:-1]
    assert "verdict yet" in reason[-1].content
    assert reason[-1].content.endswith("Rationale:")
    for label in template.labels:
        assert f'"Verdict: {label}"' in text(ab.state(Form.TEXT))
        assert label in ab.choose_after
        assert label in ab.verdict_only
    assert '"reasoning"' in text(ab.state(Form.SCHEMA))
    assert ab.state(Form.SCHEMA) == ab.state(Form.TOOL)


def test_a_stepwise_question_names_its_steps() -> None:
    question = load_template("summarisation-stepwise").question(PAIR, Order.AB)
    ending = question.reason()[-1].content.rpartition("end_")[2]
    steps = ["1. Intent:", "2. Summary A:", "3. Summary B:", "4. Comparison:"]
    assert [ending.index(step) for step in steps] == sorted(ending.index(step) for step in steps)


def test_the_schema_asks_for_reasoning_and_then_one_of_the_labels() -> None:
    schema = json.loads(load_template("quality-stepwise").question(PAIR, Order.AB).verdict_schema)
    assert list(schema["properties"]) == schema["required"] == ["reasoning", "verdict"]
    assert schema["properties"]["verdict"]["enum"] == ["A", "B"]
    assert schema["additionalProperties"] is False
    schema = json.loads(load_score_template("rubric").verdict_schema)
    assert schema["properties"]["score"] == {"type": "integer", "enum": [1, 2, 3, 4, 5]}


def test_a_score_question_shows_one_answer() -> None:
    question = load_score_template("helpfulness-score").question(PAIR.prompt, "Hello!")
    shown = text(question.score())
    assert shown.index("Say hello.") < shown.index("Hello!")
    assert shown.endswith("Reply with a whole number from 1 to 10 and nothing else.")
    assert '"Score:"' in text(question.state(Form.TEXT))
    assert question.scale == (1, 10)


def test_a_rubric_asks_about_one_criterion_on_its_levels() -> None:
    clarity = Criterion(name="clarity", question="Is it clear?", levels={n: f"Level {n} of five." for n in range(1, 6)})
    template = load_score_template("rubric")
    shown = text(template.question(PAIR.prompt, "Hello!", criterion=clarity).score())
    assert "clarity" in shown
    assert "Is it clear?" in shown
    assert "1: Level 1 of five.\n2: Level 2 of five." in shown
    assert shown.endswith("from 1 to 5 and nothing else.")
    with pytest.raises(UserError, match="only ask about a rubric's criteria"):
        template.question(PAIR.prompt, "Hello!")


def test_examples_criteria_and_a_principle_come_before_the_pair() -> None:
    material = load_material(examples="examples-quality", criteria="criteria-quality")
    principle = Principle(id="kind", text="Prefer the kinder answer.")
    shown = text(load_template("quality").question(PAIR, Order.AB, material=material, principle=principle).choose())
    places = [material.criteria[0], principle.text, material.examples[0].answer_a, "Say hello."]
    assert [shown.index(place) for place in places] == sorted(shown.index(place) for place in places)


def test_the_better_example_is_shown_first_and_second_by_turns() -> None:
    examples = [
        Example(prompt=f"Ask {number}.", answer_a="Good." if better == "a" else "Bad.",
                answer_b="Good." if better == "b" else "Bad.", better=better)
        for number, better in enumerate("aabb")
    ]  # fmt: skip
    shown = load_template("quality-stepwise").examples(Material(examples=tuple(examples)))
    assert [example.label for example in shown] == ["A", "B", "A", "B"]
    assert ["Good." in example.first for example in shown] == [True, False, True, False]
    assert ["Good." in example.second for example in shown] == [False, True, False, True]


def test_what_comes_before_the_pair_is_the_same_for_every_pair() -> None:
    """So that an endpoint that caches prefixes bills it once."""
    material = load_material(examples="examples-quality")
    other = Pair("other", Prompt("other", "Say goodbye."), "Bye.", "No.")
    template = load_template("quality")
    one, two = (template.question(pair, Order.AB, material=material).choose() for pair in (PAIR, other))
    assert one[0] == two[0]
    before, after = one[1].content.split("The pair to judge")
    assert two[1].content.startswith(before)
    assert after != two[1].content.removeprefix(before)


def test_the_same_question_is_the_same_prompt_in_another_process() -> None:
    program = (
        "from rlaif_ray.judge.material import load_material\n"
        "from rlaif_ray.judge.templates import load_template\n"
        "from rlaif_ray.records import Order, Pair, Prompt\n"
        "material = load_material(examples='examples-quality', criteria='criteria-quality')\n"
        "pair = Pair('pair', Prompt('prompt', 'Say hello.'), 'Hello!', 'Go away.')\n"
        "template = load_template('quality-stepwise')\n"
        "print([template.hash, material.hash, template.question(pair, Order.BA, material=material).reason()])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_what_a_template_does_not_show_is_refused(tmp_path: Path) -> None:
    template = load_template("headlines")
    template.require(Material())
    with pytest.raises(UserError, match=r"headlines\.j2: shows no criteria; .*judge\.criteria"):
        template.require(Material(criteria=("Be kind.",)))
    with pytest.raises(UserError, match=r"shows no principles; .*judge\.principles"):
        template.require(Material(principles=(Principle(id="kind", text="Be kind."),)))
    load_template("quality-cot").require(load_material(examples="examples-quality", principles="principles"))
    path = tmp_path / "mine.j2"
    path.write_text('{% extends "quality.j2" %}' + USER)
    with pytest.raises(UserError, match="shows no examples; "):
        load_template(str(path)).require(load_material(examples="examples-quality"))


def test_a_file_needs_no_endings_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.j2"
    path.write_text(LABELS + USER)
    question = load_template(str(path)).question(PAIR, Order.AB)
    assert question.choose()[0].content.endswith("Reply with 1 or 2 and nothing else.")
    assert question.reason()[0].content.endswith("Rationale:")


def test_a_file_can_write_its_endings_and_add_to_the_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.j2"
    path.write_text(
        LABELS + USER + "{% block choose %} Which? {% endblock %}"
        "{% block steps %}Be brief. {{ super() }}{% endblock %}{% block choose_after %}So, which?{% endblock %}"
    )
    question = load_template(str(path)).question(PAIR, Order.AB)
    assert question.choose()[0].content.endswith("\nend_d7891b8d Which?")
    assert "Be brief. Compare the two" in question.reason()[0].content
    assert question.choose_after == "So, which?"


def test_a_file_can_stand_on_a_shipped_one_and_on_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "house.j2").write_text("{{ labels[0] }} or {{ labels[1] }}, by the rules of the house?")
    path = tmp_path / "quality.j2"
    path.write_text(
        '{% extends "quality.j2" %}{% set candidate = "Reply" %}'
        '{% block choose %}{% include "house.j2" %}{% endblock %}'
    )
    template = load_template(str(path))
    shown = text(template.question(PAIR, Order.AB).choose())
    assert "Reply 1:" in shown
    assert shown.endswith("1 or 2, by the rules of the house?")
    (tmp_path / "house.j2").write_text("{{ labels[0] }} or {{ labels[1] }}?")
    assert load_template(str(path)).hash != template.hash


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{% block user %}\n{% if %}\n{% endblock %}", r", line 2: Expected an expression"),
        (LABELS + "{% block user %}\n{{ prompt|shout }}{% endblock %}", r", line 3: No filter named 'shout'"),
        (LABELS + USER + USER, r", line 3: block 'user' defined twice"),
        (LABELS + "{{ prompt }}", r", line 2: stands outside of every block"),
        (LABELS + "\n\nWhich?\n" + USER, r", line 4: stands outside of every block"),
        (LABELS + "{% macro x() %}{% endmacro %}" + USER, r", line 2: stands outside of every block"),
        (LABELS + "{% block choose %}1 or 2?{% endblock %}", r": has no `user` block"),
        (USER, r": must name two labels"),
        ('{% set labels = ["1"] %}' + USER, r", line 1: must name two labels"),
        ('{% set labels = ["1", 2] %}' + USER, r", line 1: must name two labels"),
        ("{% set labels = [prompt, prompt] %}" + USER, r", line 1: labels must be a constant"),
        ('\n{% set labels = ["1", "1"] %}' + USER, r", line 2: '1' and '1' cannot be told apart"),
        ('{% set labels = ["1", "10"] %}' + USER, r", line 1: '1' and '10' cannot be told apart"),
        ('{% set labels = ["A", "a"] %}' + USER, r", line 1: 'A' and 'a' cannot be told apart"),
        ('{% set labels = ["1", ""] %}' + USER, r", line 1: a label must not be empty"),
        ('{% set labels = ["1 ", "2"] %}' + USER, r", line 1: a label must not be empty, nor begin or end"),
        (
            '{% set labels = ["X", "Y"] %}' + USER + "{% block choose %}Which?{% endblock %}",
            r", line 1: the question never says 'X'",
        ),
        (LABELS + "{% block user %}\n{{ answer }}\n{% endblock %}", r", line 3: 'answer' is undefined; a template is"),
        (
            LABELS + USER + "{% block reason %}\n{% if form %}{% endif %}{% endblock %}",
            r", line 4: 'form' is undefined",
        ),
        (LABELS + USER + "{% block choose_after %}{{ first }}{% endblock %}", r", line 3: 'first' is undefined"),
        (
            LABELS + "{% block user %}\n\n{{ prompt.__class__.__mro__ }}{% endblock %}",
            r", line 4: access to attribute '__class__'",
        ),
        (LABELS + USER + "{% block state %}\n{{ labels.append(1) }}{% endblock %}", r", line 4: "),
        (LABELS + USER + "{% block choose %}\n\n{{ 1 / 0 }}{% endblock %}", r", line 5: division by zero"),
        (LABELS + USER + "{% block choose %}{{ examples[0].age }}{% endblock %}", r", line 3: "),
        (
            LABELS + USER + "{% block choose %}{% if examples %}{{ examples[0].age }}{% endif %}{% endblock %}",
            r", line 3: .*'age'",
        ),
        (LABELS + USER + "{% block choose %}{{ [1, 2]|random }}{% endblock %}", r", line 3: No filter named 'random'"),
        (LABELS + USER.replace("{{ second }}", ""), r", line 2: must show `second` once"),
        (LABELS + USER.replace("{{ first }}", "{{ first }}{{ first }}"), r", line 2: must show `first` once"),
        (LABELS + USER.replace("first", "first|truncate(900)"), r", line 2: must show `first` once in `user`, whole"),
        (LABELS + USER.replace("first", "first|upper"), r", line 2: must show `first` once in `user`, whole"),
        (LABELS + USER + "{% block system %}{{ prompt }}{% endblock %}", r", line 2: must show `prompt` once"),
        (
            LABELS + "{% block user %}{{ prompt }} 2: {{ second }} 1: {{ first }}{% endblock %}",
            r", line 2: must show `first` before `second`",
        ),
        ('{% extends "nowhere.j2" %}', r": stands on 'nowhere.j2', which is neither shipped nor beside it"),
        ('{% extends "../mine.j2" %}', r": stands on '../mine.j2', which is neither shipped nor beside it"),
        ("{% set other = 'quality.j2' %}{% extends other %}", r": stands on a computed name"),
        ('{% extends "mine.j2" %}' + LABELS + USER, r", line 1: mine.j2 extends itself"),
    ],
)
def test_a_bad_template_is_refused_at_load(tmp_path: Path, source: str, sentence: str) -> None:
    path = tmp_path / "mine.j2"
    path.write_text(source)
    with pytest.raises(UserError, match="^" + str(path) + sentence) as error:
        load_template(str(path))
    assert "\n" not in str(error.value)


def test_an_error_in_a_file_that_is_stood_on_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "base.j2").write_text(LABELS + USER + "{% block choose %}\n{{ 1 / 0 }}{% endblock %}")
    path = tmp_path / "mine.j2"
    path.write_text('{% extends "base.j2" %}')
    with pytest.raises(UserError, match=rf"^{tmp_path / 'base.j2'}, line 4: division by zero"):
        load_template(str(path))


def test_an_error_that_needs_a_certain_pair_is_a_sentence_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.j2"
    path.write_text(LABELS + USER + "{% block choose %}\n{{ 1 / (first|length - 30) }} 1 or 2{% endblock %}")
    template = load_template(str(path))
    # begin_, the mark, a line feed, the answer, a line feed, end_ and the mark again: 28 and the answer's length
    with pytest.raises(UserError, match=rf"^{path}, line 4: division by zero"):
        template.question(Pair("pair", PAIR.prompt, "No", "Yes"), Order.AB).choose()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{% block user %}{{ prompt }}{{ answer }}{% endblock %}", ": must name its lowest and highest score"),
        ("{% set scale = [10, 1] %}{% block user %}{{ prompt }}{{ answer }}{% endblock %}", ", line 1: must name its"),
        ("{% set scale = [1, 10] %}{% block user %}{{ prompt }}{% endblock %}", ", line 1: must show `answer` once"),
        ("{% set scale = [1, 10] %}{% block user %}{{ first }}{% endblock %}", ", line 1: 'first' is undefined"),
        (
            "{% set scale = [1, 10] %}{% block user %}{{ criterion.name }}{{ prompt }}{{ answer }}{% endblock %}",
            ": shows `criterion`, whose levels are 1 to 5",
        ),
    ],
)
def test_a_bad_score_template_is_refused_at_load(tmp_path: Path, source: str, sentence: str) -> None:
    path = tmp_path / "mine.j2"
    path.write_text(source)
    with pytest.raises(UserError, match="^" + str(path) + sentence):
        load_score_template(str(path))


def test_a_missing_template_names_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"^judge\.template: no file 'nope' .*headlines, helpfulness, .*quality-cot"):
        load_template("nope")
    with pytest.raises(UserError, match=r"^judge\.score_template: no file 'quality' .*quality-score, rubric"):
        load_score_template("quality")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.j2"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match="cannot be read as text in UTF-8"):
        load_template(str(path))


def test_score_templates_are_all_shipped_under_their_names() -> None:
    assert {path.stem for path in SHIPPED_SCORES.glob("*.j2")} == {"rubric", *(f"{task}-score" for task in TASKS)}
