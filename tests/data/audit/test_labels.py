"""The balance of labels."""

from __future__ import annotations


def labelled(label, **counts):
    return [
        label(f"text {name} {n} about {n * 7919}", name, n)
        for name, count in counts.items()
        for n in range(count)
    ]


def test_balanced_labels_are_clean(label, run, faults):
    result = run(labelled(label, good=30, bad=20, neutral=15))
    assert faults(result) == {}
    assert [(share.name, share.count) for share in result.labels] == [
        ("good", 30),
        ("bad", 20),
        ("neutral", 15),
    ]
    assert sum(share.share for share in result.labels) == 1


def test_rare_labels(label, run, faults):
    found = faults(run(labelled(label, good=300, bad=100, odd=12, rare=3)))["label balance"]
    assert found.count == 15
    assert "'rare' (3), 'odd' (12)" in found.message
    assert "text rare 0" in found.instances[0].excerpt


def test_a_single_label_is_an_error(label, run, faults):
    found = faults(run(labelled(label, only=30)))
    assert set(found) == {"single label"}
    assert found["single label"].severity == "error"
    assert found["single label"].count == 30


def test_other_data_has_no_labels(english, run):
    assert run(english).labels == ()


def test_two_labels_for_one_text(label, run, faults):
    data = [
        *labelled(label, good=12, bad=12),
        label("so so", "good", 98),
        label("So  so", "bad", 99),
    ]
    assert "contradictions" not in faults(run(data))
    data[-1] = label("so  so", "bad", 99)
    found = faults(run(data))
    assert set(found) == {"contradictions"}
    assert found["contradictions"].instances[0].origin.line == 99
