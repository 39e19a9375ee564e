"""Training samples that stand in the held-out set too."""

from __future__ import annotations

import pytest

STORY = (
    "The lighthouse keeper counted the ships every evening, wrote their names into a ledger bound "
    "in green cloth, lit the lamp, and told his dog which of them carried oranges, which carried "
    "coal, and which, to judge by the songs, carried nobody home at all."
)


def test_held_out_data_of_its_own_is_clean(english, run):
    result = run(english[:30], held_out=english[30:])
    assert result.findings == ()
    assert result.samples == 30


def test_the_same_sample_and_the_same_prompt(english, ask, run, faults):
    held = [
        ask(m.messages[0].content, "Another answer.", 7, file="valid.jsonl") for m in english[:2]
    ]
    result = run(english, held_out=[*held, english[5]])
    found = faults(result)
    assert set(found) == {"held-out overlap"}
    assert found["held-out overlap"].count == 3
    assert found["held-out overlap"].severity == "error"
    assert found["held-out overlap"].instances[0].other == held[0].origin
    assert "valid.jsonl:7" in result.dropped[0].reason
    assert [drop.origin.line for drop in result.dropped] == [1, 2, 6]


@pytest.mark.parametrize("kind", ["prompt", "whole"])
def test_nearly_the_same(kind, english, ask, run, faults):
    if kind == "prompt":
        ours = ask(f"Who wrote this? {STORY}", "Nobody whom I know.", 51)
        theirs = ask(
            f"Who wrote this? {STORY} Say.", "It sounds like something I read long ago.", 1
        )
    else:
        ours, theirs = ask("Write on.", STORY, 51), ask("Write on, please.", STORY + " So.", 1)
    result = run([*english, ours], held_out=[theirs])
    found = faults(result)
    assert set(found) == {"near held-out overlap"}
    assert found["near held-out overlap"].count == 1
    assert found["near held-out overlap"].instances[0].origin.line == 51
    assert result.dropped == ()


def test_system_messages_do_not_make_samples_alike(ask, english, run, faults):
    ours = [
        ask(one.messages[0].content, one.messages[1].content, n, system=STORY)
        for n, one in enumerate(english[:20])
    ]
    theirs = [
        ask(one.messages[0].content, one.messages[1].content, n, system=STORY)
        for n, one in enumerate(english[20:])
    ]
    assert faults(run(ours, held_out=theirs)) == {}


def test_texts_and_completions_without_a_prompt(text, english, run, faults):
    result = run(
        [text(STORY, 1), text("Quite another text, on other things.", 2)],
        held_out=[text("  " + STORY.replace(" ", "\n"), 1)],
    )
    assert faults(result)["held-out overlap"].count == 1
    assert faults(run([text(STORY)], held_out=[])) == {}


def test_labelled_texts_overlap_by_their_text(label, run):
    data = [label(f"text number {n * 7919} is here", "ab"[n % 2], n) for n in range(40)]
    held = [label("text number 7919 is here", "b", 1), label("nothing of the kind", "a", 2)]
    found = {one.check: one for one in run(data, held_out=held).findings}
    assert found["held-out overlap"].count == 1
