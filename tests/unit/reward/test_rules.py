"""A user's rules in their processes, with real faults."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from rlaif_ray.config import UserError
from rlaif_ray.records import Message, Prompt
from rlaif_ray.reward.composition import DecodedAnswer
from rlaif_ray.reward.rules import Rule, rule_location

SOURCE = """
import os, re, time

import helper

def rate(prompt, answer, reference):
    print("chatter", answer)
    if answer == "silent":
        return None
    if answer == "hang":
        while True:
            pass
    if answer == "hold":  # the interpreter's lock too
        re.match("(a+)+$", "a" * 64 + "b")
    if answer == "die":
        os._exit(3)
    if answer == "exit":
        raise SystemExit
    if answer == "raise":
        raise ValueError("no\\nsense")
    if answer == "nan":
        return float("nan")
    if answer == "words":
        return "many"
    if answer == "read":
        return len(input())
    if answer == "pid":
        return os.getpid()
    if answer == "roles":
        return len(prompt) if isinstance(prompt, list) and prompt[0]["role"] == "user" else -1
    if answer == "reference":
        return -1 if reference is None else len(reference)
    return helper.length(answer)

number = 7
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("length = len\n")
    path = tmp_path / "rules.py"
    path.write_text(SOURCE)
    return path


Opened = Callable[..., Awaitable[Rule]]


@pytest.fixture
def opened(source: Path) -> Opened:
    async def opened(deadline_s: float = 20.0) -> Rule:
        rule = Rule(source, "rate", deadline_s=deadline_s)
        await rule.open()
        return rule

    return opened


def answer(text: str, prompt: Prompt | None = None) -> DecodedAnswer:
    return DecodedAnswer(text, "group", prompt or Prompt("p", "Say."), text)


async def test_a_rule_sees_the_prompt_the_answer_and_the_reference(opened: Opened) -> None:
    """And its file may import what lies beside it, and print."""
    rule = await opened()
    said = await rule.score(
        [
            answer("four"),
            answer("roles", Prompt("p", (Message("user", "a"), Message("assistant", "b"), Message("user", "c")))),
            answer("reference"),
            answer("reference", Prompt("p", "Say.", reference="a good one")),
        ]
    )
    assert said.values.tolist() == [4, 3, -1, 10]
    assert not said.reasons


async def test_what_is_no_number_says_why(opened: Opened) -> None:
    rule = await opened()
    texts = ["silent", "raise", "exit", "nan", "words", "read", "die", "last"]
    said = await rule.score([answer(text) for text in texts])
    np.testing.assert_array_equal(np.isfinite(said.values), [False] * 7 + [True])
    assert set(said.reasons) == {
        "it has nothing to say",
        "it raised ValueError: no sense",
        "it raised SystemExit: ",
        "it returned nan",
        "it raised ValueError: could not convert string to float: 'many'",
        "it raised EOFError: EOF when reading a line",
        "its process died",
    }


@pytest.mark.parametrize("fault", ["hang", "hold"])
async def test_a_rule_that_hangs_is_killed_and_costs_its_answers_alone(fault: str, opened: Opened) -> None:
    rule = await opened(deadline_s=1.0)
    said = await rule.score([answer(text) for text in (fault, "one", fault, "three", fault, fault, fault, "five!")])
    np.testing.assert_array_equal(said.values, [np.nan, 3, np.nan, 5, np.nan, np.nan, np.nan, 5])
    assert said.reasons == {"it took longer than 1 s": 5}


async def test_a_process_that_was_killed_is_replaced(opened: Opened) -> None:
    rule = await opened()
    (pid,) = (await rule.score([answer("pid")])).values
    os.kill(int(pid), signal.SIGKILL)
    await asyncio.sleep(0.2)
    lost = await rule.score([answer("four")])
    again = await rule.score([answer("four")])
    assert lost.reasons == {"its process died": 1}
    assert again.values.tolist() == [4]


async def test_a_hung_rule_does_not_outlive_whoever_asked(source: Path) -> None:
    """The one who asks is gone and kills nothing: the rule's own alarm does, though it holds the interpreter."""
    script = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from rlaif_ray.records import Prompt\n"
        "from rlaif_ray.reward.composition import DecodedAnswer\n"
        "from rlaif_ray.reward.rules import Rule\n"
        "async def main():\n"
        f"    rule = Rule(Path({str(source)!r}), 'rate', deadline_s=1.0)\n"
        "    await rule.open()\n"
        "    def ask(text): return rule.score([DecodedAnswer(text, 'g', Prompt('p', 'Say.'), text)])\n"
        "    print(int((await ask('pid')).values[0]), flush=True)\n"
        "    task = asyncio.create_task(ask('hold'))\n"
        "    await asyncio.sleep(0.3)\n"
        "    os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    pid = int(out.split()[-1])
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the rule still runs"
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("source_text", "name", "why"),
    [
        ("def rate(", "rate", "SyntaxError"),
        ("import no_such_module", "rate", "ModuleNotFoundError"),
        ("rate = 1", "rate", "TypeError: rate is no function"),
        ("", "rate", "AttributeError"),
        ("import os\nos._exit(1)", "rate", "its process died"),
    ],
)
async def test_a_rule_that_cannot_be_loaded_is_one_sentence(
    tmp_path: Path, source_text: str, name: str, why: str
) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source_text)
    with pytest.raises(UserError) as error:
        await Rule(path, name).open()
    assert str(error.value).startswith(f"reward.mix: {name} of {path} cannot be loaded ({why}")
    assert "\n" not in str(error.value)


def test_a_function_is_named_by_file_and_name(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    assert rule_location("rules.py:rate") == (source, "rate")
    for wrong in ("rules.py", "none.py:rate", "rules.py:rate it", ":rate"):
        with pytest.raises(UserError, match=r"reward\.mix: function .* write FILE\.py:NAME"):
            rule_location(wrong)
