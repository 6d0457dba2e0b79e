"""CONFORMANCE.md says what is so: complete, fresh, and backed by tests that exist."""

import re

import pytest

from tests import conformance
from tests.conformance import ROOT, STATUSES, TARGET, Proof

ROWS = conformance.rows()
PROOFS = list(conformance.proofs())


def proofs_of(item: str) -> list[Proof]:
    return [proof for proof in PROOFS if proof.item == item]


def test_it_is_fresh() -> None:
    assert TARGET.read_text() == conformance.document(), "run python -m tests.conformance"


def test_every_item_has_its_row_and_no_other_has_one() -> None:
    assert list(ROWS) == conformance.items()


def test_marks_name_items() -> None:
    assert {p.item for p in PROOFS} - {*ROWS} == set()


@pytest.mark.parametrize("item", ROWS)
def test_no_row_is_empty(item: str) -> None:
    row = ROWS[item]
    assert row.rule.endswith(".") and row.status in STATUSES
    assert bool(row.missing) == (row.status == "partly"), "partly says what is missing"
    assert bool(row.reason) == (row.status == "refused"), "refused says why"


@pytest.mark.parametrize("item", ROWS)
def test_a_row_is_what_its_tests_make_it(item: str) -> None:
    status, proved = ROWS[item].status, proofs_of(item)
    if status in ("tested", "partly"):
        assert proved, f"{item} is called {status}, but no test bears its name"
    if status == "tested":
        assert not [p.test for p in proved if p.broken], f"{item} is tested, but these fail"
    if status == "not yet":
        assert not [p.test for p in proved], f"{item} is not yet there, but these prove it"


def test_every_test_that_is_named_exists() -> None:
    """In the file as it stands, not as it would be made now."""
    named = re.findall(r"\[[\w.]+\]\((tests/[\w./]+)\): ((?:`\w+`(?:, )?)+)", TARGET.read_text())
    assert len(named) > 50
    for path, tests in named:
        text = (ROOT / path).read_text()
        for test in re.findall(r"`(\w+)`", tests):
            assert f"def {test}(" in text or path.endswith(f"/{test}.c"), f"{path}: {test}"
